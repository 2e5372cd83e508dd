"""Windows cover the brain's box alone; answers have the scan's size and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from torch import Tensor, nn

from tests.bundles.conftest import REPOSITORY
from tests.data.folders import OLD, write_volume

CONFIGS = REPOSITORY / "bundles" / "swinunetr_mod" / "configs"
SIZE = (40, 36, 44)
BRAIN = (slice(6, 25), slice(9, 30), slice(3, 41))
TUMOUR = (slice(10, 16), slice(12, 18), slice(8, 15))
RAS, LPS = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])
ROI = [16, 16, 16]


def write_case(
    folder: Path, affine: np.ndarray = RAS, brain: Any = BRAIN, *, case: str = "A", voxels: int = 0
) -> Path:
    """A case with noise in its brain, a tumour, and so many voxels of tumour far outside."""
    rng = np.random.default_rng(4)
    affine = affine.copy()
    affine[:3, 3] = (11, -7, 5)
    for suffix in OLD:
        scan = np.zeros(SIZE, np.int16)
        if brain:
            scan[brain] = rng.integers(1, 1000, scan[brain].shape)
            scan[TUMOUR] += 700
        write_volume(folder / case / f"{case}_{suffix}.nii.gz", scan, affine)
    label = np.zeros(SIZE, np.uint8)
    label[TUMOUR] = 4
    label[-1, -1, :voxels] = 4
    write_volume(folder / case / f"{case}_seg.nii.gz", label, affine)
    return folder


def pointwise(folder: Path, bias: float = 2.0) -> dict[str, Any]:
    """Settings of a network that sees one voxel at a time, and calls air a tumour."""
    network = nn.Conv3d(4, 3, 1)
    nn.init.constant_(network.bias, bias)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 4, "out_channels": 3}
    return {
        "checkpoint": str(folder / "model.pt"),
        "network_def": {**definition, "kernel_size": 1},
        "roi_size": ROI,
    }


def open_config(config: str, **settings: Any) -> ConfigWorkflow:
    kind = {"inference": "inference", "evaluate": "eval", "train": "train"}[config]
    workflow = ConfigWorkflow(
        str(CONFIGS / f"{config}.json"), logging_file=False, workflow_type=kind, **settings
    )
    workflow.initialize()
    return workflow


def written(data: Path, out: Path, **settings: Any) -> tuple[Any, Any]:
    """Label map and probabilities of case A."""
    settings = {"dataset_dir": str(data), "output_dir": str(out), **settings}
    open_config("inference", save_probabilities=True, **settings).run()
    return nib.load(out / "A_seg.nii.gz"), nib.load(out / "A_prob.nii.gz")


@pytest.mark.parametrize("affine", [RAS, LPS])
@pytest.mark.parametrize("flips", [False, True])
def test_the_answer_lies_where_the_scan_does(
    affine: np.ndarray, flips: bool, tmp_path: Path
) -> None:
    """Inside the box it is the whole volume's: where windows fall means nothing to this network."""
    data, settings = write_case(tmp_path / "data", affine), pointwise(tmp_path / "models")
    settings["test_time_flips"] = flips
    boxed, boxed_prob = written(data, tmp_path / "boxed", **settings)
    whole, whole_prob = written(data, tmp_path / "whole", crop_to_brain="false", **settings)
    scan = nib.load(data / "A" / "A_t1.nii.gz")
    for image in (boxed, boxed_prob, whole, whole_prob):
        np.testing.assert_array_equal(image.affine, scan.affine)
        assert image.shape[:3] == SIZE
    inside = np.zeros(SIZE, bool)
    inside[BRAIN] = True
    for found, expected in ((boxed, whole), (boxed_prob, whole_prob)):
        values, truth = np.asarray(found.dataobj), np.asarray(expected.dataobj)
        np.testing.assert_allclose(values[inside], truth[inside], atol=1e-6)
        assert (values[~inside] == 0).all()
        assert (truth[~inside] > 0).all()


@pytest.mark.parametrize("brain", [None, (slice(20, 23),) * 3])
def test_scans_with_little_in_them(brain: Any, tmp_path: Path) -> None:
    """An empty scan is taken whole, a brain smaller than a window is padded."""
    data, settings = write_case(tmp_path / "data", brain=brain), pointwise(tmp_path / "models")
    settings["roi_size"] = [32, 32, 32]
    found, _ = written(data, tmp_path / "out", **settings)
    assert found.shape == SIZE
    assert np.asarray(found.dataobj).any()


@pytest.mark.parametrize("crop", ["true", "false"])
def test_labels_outside_the_box_count_in_the_evaluation(crop: str, tmp_path: Path) -> None:
    data = write_case(tmp_path / "data", voxels=30)
    settings = pointwise(tmp_path / "models", bias=0.0)
    workflow = open_config(
        "evaluate",
        **settings,
        dataset_dir=str(data),
        output_dir=str(tmp_path / "out"),
        crop_to_brain=crop,
    )
    # a data set of one case has none to evaluate on
    get = workflow.parser.get_parsed_content
    cases = [{"case": "A", "image": [str(data / "A" / f"A_{s}.nii.gz") for s in OLD]}]
    cases[0]["label"] = str(data / "A" / "A_seg.nii.gz")
    get("dataset").data = cases
    get("load")(get("network"), get("checkpoints")[0])
    get("evaluator").run()
    found = np.asarray(nib.load(tmp_path / "out" / "A_seg.nii.gz").dataobj) > 0
    truth = np.asarray(nib.load(cases[0]["label"]).dataobj) > 0
    assert truth.sum() == 6 * 6 * 7 + 30
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    header, row = (tmp_path / "out" / "metrics_per_case.csv").read_text().splitlines()[:2]
    scores = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(scores["dice_wt"]) == pytest.approx(dice, abs=1e-5)
    assert (tmp_path / "out" / "report.html").is_file()  # its pictures need one size of all


def test_validation_keeps_all_labels(tmp_path: Path) -> None:
    """The box of image and label together."""
    for case, brain, voxels in (("A", BRAIN, 0), ("B", BRAIN, 30), ("C", None, 0)):
        write_case(tmp_path / "data", LPS, brain, case=case, voxels=voxels)
    (tmp_path / "data" / "C" / "C_seg.nii.gz").unlink()
    write_volume(tmp_path / "data" / "C" / "C_seg.nii.gz", np.zeros(SIZE, np.uint8), LPS)
    workflow = open_config(
        "train", dataset_dir=str(tmp_path / "data"), bundle_root=str(tmp_path), roi_size=[64] * 3
    )
    prepare = workflow.parser.get_parsed_content("validate#preprocessing")
    shapes = []
    for case in "ABC":
        files = [str(tmp_path / "data" / case / f"{case}_{suffix}.nii.gz") for suffix in OLD]
        label = tmp_path / "data" / case / f"{case}_seg.nii.gz"
        item = prepare({"case": case, "image": files, "label": str(label)})
        assert set(item) == {"case", "image", "label"}
        assert item["label"].shape[1:] == item["image"].shape[1:]
        assert item["label"][1].sum() == (np.asarray(nib.load(label).dataobj) > 0).sum()
        shapes.append(tuple(item["image"].shape[1:]))
    assert shapes[0] == tuple(part.stop - part.start for part in BRAIN)
    assert shapes[1] == (SIZE[0] - 6, SIZE[1] - 9, 41)
    assert shapes[2] == SIZE


class Watched(nn.Conv3d):
    """Notes the windows of each pass and the precision that it computes with."""

    batches: list[int]
    kinds: set[torch.dtype]

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        self.batches.append(len(x))
        self.kinds.add(found.dtype)
        return found


def run_watched(image: Tensor, tmp_path: Path, **settings: Any) -> tuple[Tensor, Watched]:
    settings = {**pointwise(tmp_path), **settings, "device": "cpu"}
    settings["network_def"] = {**settings["network_def"], "_target_": f"{__name__}.Watched"}
    get = open_config("inference", **settings).parser.get_parsed_content
    network = get("network").eval()
    network.batches, network.kinds = [], set()
    torch.manual_seed(1)
    nn.init.normal_(network.weight)
    nn.init.zeros_(network.bias)
    with torch.no_grad():
        return get("predict")(image, network), network


def test_windows_at_once(tmp_path: Path) -> None:
    image = MetaTensor(torch.randn(1, 4, 30, 24, 16))
    one, plain = run_watched(image, tmp_path)
    four, batched = run_watched(image, tmp_path, sw_batch_size=4)
    assert plain.batches == [1] * 6
    assert batched.batches == [4, 2]
    assert plain.kinds == batched.kinds == {torch.float32}
    torch.testing.assert_close(four, one, rtol=0, atol=1e-5)


def test_half_precision_is_there_on_the_cpu_too(tmp_path: Path) -> None:
    image = MetaTensor(torch.randn(1, 4, 30, 24, 16))
    single, _ = run_watched(image, tmp_path)
    half, network = run_watched(image, tmp_path, amp="true")
    assert network.kinds == {torch.bfloat16}
    assert half.dtype == torch.float32
    difference = (torch.sigmoid(half) - torch.sigmoid(single)).abs().max()
    assert 0 < difference < 0.02


def test_members_of_an_ensemble_take_as_many_windows_at_once(tmp_path: Path) -> None:
    settings = {**pointwise(tmp_path), "sw_batch_size": 3}
    settings["checkpoint"] = [settings["checkpoint"]] * 2
    record = {"target": "torch.nn.Conv3d", "in_channels": 4, "out_channels": 3, "kernel_size": 1}
    story = {"settings": {"network": record, "roi_size": ROI}}
    (tmp_path / "training.json").write_text(json.dumps(story))
    for config in ("inference", "evaluate"):
        members = open_config(config, **settings).parser.get_parsed_content("members")
        assert [inferer.sw_batch_size for _, inferer in members] == [3, 3]
