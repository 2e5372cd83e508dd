"""Several checkpoints, test-time flips and post-processing in evaluation and inference."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from mod_components.data import find_cases, make_datalist, save_datalist
from mod_components.errors import UserError
from mod_components.evaluation.thresholds import Thresholds
from mod_components.files import file_digest
from mod_components.release import backbones
from tests.backbones import build_network, small_settings
from tests.bundles.conftest import REPOSITORY, run_bundle
from tests.bundles.test_workflows import WITHOUT_PACKAGE
from tests.evaluation.test_thresholds import blobs, by_hand

ROI = (64, 64, 64)
CONFIGS = ("inference.json", "evaluate.json")


def write_checkpoint(folder: Path, name: str, seed: int) -> tuple[Path, nn.Module]:
    """What a training of a small network leaves, with random weights."""
    torch.manual_seed(seed)
    network = build_network(name, ROI).eval()
    row = backbones()[name]
    settings = {**row["network_settings"], **small_settings(name), "roi_size": list(ROI)}
    # as train.json writes it: the class and its arguments, resolved
    facts = {key.strip("_"): value for key, value in row["network_def"].items()}
    facts = {
        key: settings[value[1:]] if isinstance(value, str) and value[0] == "@" else value
        for key, value in facts.items()
    }
    folder.mkdir(parents=True)
    story = {"settings": {**settings, "bundle": f"{name}_mod", "network": facts, "overlap": 0.25}}
    (folder / "training.json").write_text(json.dumps(story))
    torch.save(network.state_dict(), folder / "model.pt")
    return folder / "model.pt", network


def causes(error: BaseException) -> str:
    """What a user sees of an error that a config raises: the first that is meant for users."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return str(error)


def refusal(workflow: ConfigWorkflow, entry: str) -> str:
    """What a user is told when an entry of a config can't be made."""
    with pytest.raises(RuntimeError) as caught:
        workflow.parser.get_parsed_content(entry)
    return causes(caught.value)


def open_config(name: str, config: str, checkpoint: Any, **options: Any) -> ConfigWorkflow:
    path = REPOSITORY / "bundles" / f"{name}_mod" / "configs" / config
    return ConfigWorkflow(
        str(path), logging_file=False, workflow_type=None, checkpoint=checkpoint, **options
    )


def run_ensemble(workflow: ConfigWorkflow, x: Tensor) -> Tensor:
    """The evaluator's inferer on an image, as probabilities."""
    get = workflow.parser.get_parsed_content
    get("load")(get("network"), get("checkpoints")[0])
    network = get("network").eval()
    with torch.no_grad():
        return torch.sigmoid(get("ensemble")(x, network))


def probabilities(network: nn.Module, x: Tensor, overlap: float = 0.25) -> Tensor:
    inferer = SlidingWindowInferer(ROI, sw_batch_size=1, overlap=overlap, mode="gaussian")
    with torch.no_grad():
        return torch.sigmoid(inferer(x, network))


@pytest.mark.parametrize("config", CONFIGS)
def test_five_folds_are_averaged(config: str, tmp_path: Path) -> None:
    folds = [write_checkpoint(tmp_path / f"fold_{k}", "unetr", seed=k) for k in range(5)]
    x = torch.randn(1, 4, 64, 80, 64)
    by_hand = sum(probabilities(network, x) for _, network in folds) / 5
    workflow = open_config("unetr", config, [str(path) for path, _ in folds])
    together = run_ensemble(workflow, x)
    torch.testing.assert_close(together, by_hand, rtol=0, atol=1e-6)
    assert (together - probabilities(folds[0][1], x)).abs().max() > 1e-3


@pytest.mark.parametrize("config", CONFIGS)
def test_backbones_are_averaged(config: str, tmp_path: Path) -> None:
    """Each network is built from the record beside its weights."""
    first, unetr = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    second, segmamba = write_checkpoint(tmp_path / "b", "segmamba", seed=2)
    x = torch.randn(1, 4, *ROI)
    by_hand = (probabilities(unetr, x) + probabilities(segmamba, x)) / 2
    together = run_ensemble(open_config("unetr", config, f"{first}, {second}"), x)
    torch.testing.assert_close(together, by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_flips_are_averaged(config: str, tmp_path: Path) -> None:
    path, network = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    x = torch.randn(1, 4, *ROI)
    flips = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
    by_hand = sum(probabilities(network, x.flip(axes)).flip(axes) for axes in flips) / 8
    together = run_ensemble(open_config("unetr", config, str(path), test_time_flips="true"), x)
    torch.testing.assert_close(together, by_hand, rtol=0, atol=1e-6)


def test_flips_are_undone_exactly(tmp_path: Path) -> None:
    """A network that looks at one voxel at a time can't tell whether the image is flipped."""
    pointwise = nn.Conv3d(4, 3, 1)
    torch.save(pointwise.state_dict(), tmp_path / "model.pt")
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 4, "out_channels": 3}
    options = {"network_def": {**definition, "kernel_size": 1}, "roi_size": [32, 32, 32]}
    x = MetaTensor(torch.randn(1, 4, 32, 45, 38))
    plain, flipped = (
        run_ensemble(
            open_config(
                "unetr", "inference.json", str(tmp_path / "model.pt"), test_time_flips=f, **options
            ),
            x,
        )
        for f in (False, True)
    )
    assert flipped.shape == (1, 3, 32, 45, 38)
    torch.testing.assert_close(flipped, plain, rtol=0, atol=1e-6)


def test_one_checkpoint_is_the_plain_sliding_window(tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    for config in CONFIGS:
        workflow = open_config("unetr", config, str(path))
        get = workflow.parser.get_parsed_content
        assert get("ensemble") is get("inferer")


@pytest.mark.parametrize("config", CONFIGS)
def test_post_processing_follows_the_thresholds(config: str, tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    thresholds = Thresholds({"TC": 40, "WT": 64, "ET": 24}, 1000)
    content = {"single": thresholds.as_dict(), "ensemble": Thresholds({}, 0).as_dict()}
    (path.parent / "postprocessing.json").write_text(json.dumps(content))
    clean = open_config("unetr", config, str(path), postprocess=True).parser.get_parsed_content(
        "postprocess_regions"
    )
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])  # 8 mm³ a voxel
    rng = np.random.default_rng(3)
    for _ in range(3):
        pred, truth = blobs(rng, 1.5), blobs(rng, 1.8)
        cleaned = clean(MetaTensor(torch.from_numpy(pred).float(), affine=affine))
        assert isinstance(cleaned, MetaTensor)
        assert cleaned.dtype == torch.float32
        np.testing.assert_array_equal(cleaned.affine, affine)
        masks = cleaned.numpy() > 0
        assert (masks.sum((1, 2, 3)) < pred.sum((1, 2, 3))).all()
        expected = by_hand(pred, truth, 8.0, thresholds)
        for channel, dice in zip((1, 0, 2), expected, strict=True):
            overlap = 2 * (masks[channel] & truth[channel]).sum()
            total = masks[channel].sum() + truth[channel].sum()
            assert overlap / total == pytest.approx(dice, abs=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_post_processing_without_thresholds_is_told(config: str, tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    workflow = open_config("unetr", config, str(path), postprocess=True)
    message = refusal(workflow, "thresholds")
    (path.parent / "postprocessing.json").write_text('{"single": {"min_component_mm3": {}}}')
    workflow = open_config("unetr", config, str(path), postprocess=True)
    assert "postprocessing.json can't be used" in refusal(workflow, "thresholds")
    assert "postprocessing.json can't be used; choose thresholds first" in message


@pytest.mark.parametrize("config", CONFIGS)
def test_thresholds_of_other_weights_are_refused(config: str, tmp_path: Path) -> None:
    """A training that went on leaves those of the weights before beside its model."""
    path, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    thresholds = Thresholds({"TC": 40, "WT": 64, "ET": 24}, 1000)
    content = {"single": thresholds.as_dict(), "weights": file_digest(path)}
    (path.parent / "postprocessing.json").write_text(json.dumps(content))
    workflow = open_config("unetr", config, str(path), postprocess=True)
    assert workflow.parser.get_parsed_content("thresholds") == thresholds.as_dict()
    shutil.copy(write_checkpoint(tmp_path / "b", "unetr", seed=2)[0], path)
    workflow = open_config("unetr", config, str(path), postprocess=True)
    message = refusal(workflow, "thresholds")
    assert f"it was made for other weights than {path} as it is" in message
    workflow = open_config("unetr", config, str(tmp_path / "no" / "model.pt"))
    assert workflow.parser.get_parsed_content("thresholds") is None


def infer(checkpoint: str, data: Path, output: Path, *options: str) -> Any:
    """``inference.json`` of unetr, in a Python that does not have this package."""
    (output.parent / "site").mkdir(exist_ok=True)
    (output.parent / "site" / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    return run_bundle(
        REPOSITORY / "bundles" / "unetr_mod" / "configs" / "inference.json",
        *("--dataset_dir", str(data), "--output_dir", str(output), "--checkpoint", checkpoint),
        *("--case", "Sample_004", *options),
        cwd=output.parent,
        PYTHONPATH=str(output.parent / "site"),
    )


def z_scored(paths: Sequence[str]) -> Tensor:
    """Images of a case stored as LPS (1, 4, D, H, W)."""
    volumes = []
    for path in paths:
        volume = torch.from_numpy(np.asarray(nib.load(path).dataobj, np.float64))
        brain = volume != 0
        volume[brain] = (volume[brain] - volume[brain].mean()) / volume[brain].std(correction=0)
        volumes.append(volume.float())
    return torch.stack(volumes)[None]


def test_inference_with_folds_where_this_package_is_not_installed(
    small_sample: Path, tmp_path: Path
) -> None:
    folds = [write_checkpoint(tmp_path / f"fold_{k}", "unetr", seed=k) for k in range(2)]
    pattern = str(tmp_path / "fold_*" / "model.pt")
    done = infer(pattern, small_sample, tmp_path / "out", "--save_probabilities", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    case = next(c for c in find_cases(small_sample) if c["case"] == "Sample_004")
    x = z_scored(case["image"])
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in (x[0] != 0).any(0).nonzero().T)
    inside = sum(probabilities(network, x[(..., *box)]) for _, network in folds)[0] / 2
    by_hand = torch.zeros(3, *x.shape[2:])
    by_hand[(..., *box)] = inside
    written = np.asarray(nib.load(tmp_path / "out" / "Sample_004_prob.nii.gz").dataobj)
    np.testing.assert_allclose(written, by_hand.permute(1, 2, 3, 0), atol=1e-5)

    done = infer(f"{folds[0][0]},{tmp_path}/none.pt", small_sample, tmp_path / "out")
    assert done.returncode != 0
    assert f"error: {tmp_path}/none.pt does not exist: train first" in done.stderr
    other, _ = write_checkpoint(tmp_path / "other", "unetr", seed=1)
    torch.save({"weight": torch.zeros(1)}, other)
    done = infer(f"{folds[0][0]},{other}", small_sample, tmp_path / "out")
    assert done.returncode != 0
    assert f"error: {other} does not fit the network" in done.stderr


def test_evaluation_of_folds(small_sample: Path, tmp_path: Path) -> None:
    """Cross-validated folds together, on the fixed validation case, with everything on."""
    datalist = make_datalist(small_sample)
    for k in range(2):
        path, _ = write_checkpoint(tmp_path / f"fold_{k}", "unetr", seed=k)
        save_datalist({**datalist, "fold": k}, path.parent / "datalist.json")
        content = {
            "ensemble": Thresholds({"TC": 0, "WT": 100, "ET": 0}, 0).as_dict(),
            "chosen_on": {"ensemble": {"cases": ["Sample_001", "Sample_002", "Sample_003"]}},
            "weights": file_digest(path),
        }
        (path.parent / "postprocessing.json").write_text(json.dumps(content))
    done = run_bundle(
        REPOSITORY / "bundles" / "unetr_mod" / "configs" / "evaluate.json",
        *("--checkpoint", str(tmp_path / "fold_*" / "model.pt")),
        *("--dataset_dir", str(small_sample), "--output_dir", str(tmp_path / "out")),
        *("--test_time_flips", "true", "--postprocess", "true"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cases"] == 1
    notes = summary["notes"]
    assert (notes["checkpoints"], notes["test-time flips"], notes["post-processing"]) == (
        2,
        True,
        True,
    )
    assert (tmp_path / "out" / "report.html").is_file()


def forge(checkpoint: Path, **network: Any) -> None:
    """Change what the record beside a checkpoint says of its network."""
    story = json.loads((checkpoint.parent / "training.json").read_text())
    story["settings"]["network"] |= network
    (checkpoint.parent / "training.json").write_text(json.dumps(story))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_record_runs_no_code(config: str, tmp_path: Path) -> None:
    first, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    second, _ = write_checkpoint(tmp_path / "b", "unetr", seed=2)
    spy = tmp_path / "spy"
    forge(second, in_channels=f"$__import__('pathlib').Path('{spy}').touch() or 4")
    for forged in ({}, {"_target_": "os.mkdir", "path": str(spy)}, {"target": "os.mkdir"}):
        forge(second, **forged)
        workflow = open_config("unetr", config, [str(first), str(second)])
        message = refusal(workflow, "members")
        assert f"the network that training.json beside {second} names" in message
        assert not spy.exists()


@pytest.mark.parametrize("config", CONFIGS)
def test_members_differ_in_what_no_shape_shows(config: str, tmp_path: Path) -> None:
    """The number of heads is in the record alone."""
    first, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    second, _ = write_checkpoint(tmp_path / "b", "unetr", seed=2)
    forge(second, num_heads=2, target="monai.networks.nets.UNETR")
    members = open_config("unetr", config, [str(first), str(second)]).parser.get_parsed_content(
        "members"
    )
    heads = [network.vit.blocks[0].attn.num_heads for network, _ in members]
    assert heads == [small_settings("unetr")["num_heads"], 2]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_first_checkpoint_of_another_backbone_is_told(config: str, tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path / "a", "segmamba", seed=1)
    workflow = open_config("unetr", config, str(path))
    message = refusal(workflow, "network_def")
    assert "holds a mod_components.networks.SegMamba, and this config builds a UNETR" in message


@pytest.mark.parametrize("config", CONFIGS)
def test_a_broken_record_is_told(config: str, tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    (path.parent / "training.json").write_text("{")
    workflow = open_config("unetr", config, str(path))
    message = refusal(workflow, "trained")
    assert "training.json" in message
    assert "read" in message


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("option", ["test_time_flips", "postprocess"])
def test_switches_are_true_or_false(config: str, option: str, tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path / "a", "unetr", seed=1)
    workflow = open_config("unetr", config, str(path), **{option: "ture"})
    entry = "flips" if option == "test_time_flips" else "thresholds"
    message = refusal(workflow, entry)
    assert "expected true or false, got 'ture'" in message


@pytest.mark.parametrize("config", CONFIGS)
def test_lists_of_checkpoints(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["f0/model.pt", "f1/model.pt", "[x]/model.pt", "a,b.pt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [str(tmp_path / name) for name in names]
    for value, expected in (
        (paths[0], paths[:1]),
        (paths[3], paths[3:]),
        (f"{paths[1]}, {paths[0]},", [paths[1], paths[0]]),
        (str(tmp_path / "f*" / "model.pt"), paths[:2]),
        ([paths[2], "~/f*/model.pt"], [paths[2], *paths[:2]]),
    ):
        workflow = open_config("unetr", config, value)
        assert workflow.parser.get_parsed_content("checkpoints") == expected
