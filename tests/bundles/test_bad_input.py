"""Bad input ends in one error that names what, where and the mend, before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mod_components.data import find_cases
from mod_components.errors import UserError
from tests.backbones import build_network, small_settings
from tests.bundles.conftest import REPOSITORY, run_bundle

CONFIGS = REPOSITORY / "bundles" / "swinunetr_mod" / "configs"


def cause_of(error: BaseException | None) -> UserError:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    assert error is not None, "no UserError among the causes"
    return error


def start(config: str, folder: Path, **settings: object) -> None:
    """Run a workflow in this process; the network is small and no step is ever made."""
    workflow = ConfigWorkflow(
        str(CONFIGS / config),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(folder),
        num_workers=0,
        **{**small_settings("swinunetr"), **settings},
    )
    workflow.initialize()
    workflow.run()


def no_case(data: Path) -> tuple[str, ...]:
    for path in data.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    return ("No case found", str(data), "BraTS 2018-2022")


def lacks_modality(data: Path) -> tuple[str, ...]:
    (data / "Sample_002" / "Sample_002_t2.nii.gz").unlink()
    return ("Sample_002", "T2", "add the file")


def another_shape(data: Path) -> tuple[str, ...]:
    path = data / "Sample_002" / "Sample_002_t1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-3], image.affine), path)
    return ("Sample_002", "Sample_002_t1.nii.gz", "61")


def unknown_code(data: Path) -> tuple[str, ...]:
    path = data / "Sample_003" / "Sample_003_seg.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    return ("Sample_003", "Sample_003_seg.nii.gz", "7", "necrosis 1, oedema 2, enhancing 4")


def no_nifti(data: Path) -> tuple[str, ...]:
    (data / "Sample_001" / "Sample_001_flair.nii.gz").write_bytes(b"this is no scan" * 100)
    return ("Sample_001", "Sample_001_flair.nii.gz")


@pytest.mark.parametrize("damage", [no_case, lacks_modality, another_shape, unknown_code, no_nifti])
@pytest.mark.parametrize("config", ["train.json", "evaluate.json"])
def test_damaged_data(
    damage: Callable[[Path], tuple[str, ...]], config: str, small_sample: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_sample, data)
    (data / "splits.json").unlink()
    expected = damage(data)
    if config == "evaluate.json":
        (tmp_path / "models").mkdir()
        torch.save({}, tmp_path / "models" / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        start(config, tmp_path, dataset_dir=str(data))
    message = str(cause_of(caught.value))
    for part in expected:
        assert part in message


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        start("train.json", tmp_path, dataset_dir="/data/none")
    assert "/data/none does not exist" in str(cause_of(caught.value))


def test_nothing_to_resume(small_sample: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        start(
            "train.json",
            tmp_path,
            dataset_dir=str(small_sample),
            roi_size=[64, 64, 64],
            resume="true",
        )
    message = str(cause_of(caught.value))
    assert str(tmp_path / "models" / "last.pt") in message
    assert "train once without --resume" in message


def test_a_checkpoint_of_another_width(small_sample: Path, tmp_path: Path) -> None:
    from monai.networks.nets import SwinUNETR

    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.pt"
    torch.save(SwinUNETR(in_channels=4, out_channels=3, feature_size=24).state_dict(), path)
    with pytest.raises(RuntimeError) as caught:
        start("evaluate.json", tmp_path, dataset_dir=str(small_sample))
    message = str(cause_of(caught.value))
    assert f"{path} does not fit SwinUNETR" in message
    assert "swinViT.patch_embed.proj.weight" in message
    with pytest.raises(RuntimeError) as caught:
        start("inference.json", tmp_path, dataset_dir=str(small_sample))
    assert f"{path} does not fit the network" in str(caught.value.__cause__)


def test_a_scan_of_nan_is_no_scan_without_a_tumour(small_sample: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_sample, data)
    for case in find_cases(data):
        image = nib.load(case["image"][2])
        voxels = image.get_fdata(dtype=np.float32)
        voxels[0, 0, 0] = np.nan
        nib.save(nib.Nifti1Image(voxels, image.affine), case["image"][2])
    (tmp_path / "models").mkdir()
    weights = build_network("swinunetr", (64, 64, 64)).state_dict()
    torch.save(weights, tmp_path / "models" / "model.pt")
    for config in ("evaluate.json", "inference.json"):
        with pytest.raises(RuntimeError) as caught:
            start(config, tmp_path, dataset_dir=str(data), roi_size=[64, 64, 64])
        causes = [caught.value]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        message = str(causes[-1])
        assert "Sample_00" in message
        assert "voxels that are not numbers (NaN or infinite) in T2" in message


def test_inference_names_what_is_missing(small_sample: Path, tmp_path: Path) -> None:
    for settings, part in (
        ({"dataset_dir": "/data/none"}, "Data folder /data/none does not exist"),
        ({"dataset_dir": str(tmp_path)}, f"in {tmp_path}"),
        ({"dataset_dir": str(small_sample), "case": "X"}, "No case X"),
        ({"dataset_dir": str(small_sample)}, "model.pt does not exist: train first"),
    ):
        with pytest.raises(RuntimeError) as caught:
            start("inference.json", tmp_path, **settings)
        assert part in str(caught.value.__cause__)
    data = tmp_path / "data"
    shutil.copytree(small_sample, data)
    lacks_modality(data)
    with pytest.raises(RuntimeError) as caught:
        start("inference.json", tmp_path, dataset_dir=str(data))
    assert "Case Sample_002" in str(caught.value.__cause__)
    assert "lacks a modality" in str(caught.value.__cause__)


def test_the_command_line_ends_with_the_error_alone(tmp_path: Path) -> None:
    done = run_bundle(
        CONFIGS / "train.json",
        *("--dataset_dir", "/data/none", "--bundle_root", str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Data folder /data/none does not exist.")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()
