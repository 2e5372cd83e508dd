"""The committed configs on real cases of each layout: right cases, channels and regions."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from tests.bundles.conftest import REPOSITORY, run_bundle, small

CONFIGS = REPOSITORY / "bundles" / "swinunetr_mod" / "configs"
pytestmark = pytest.mark.real_data

# folder: codes of (tumour core, whole tumour, enhancing tumour), written out from the data sets'
# own descriptions
LAYOUTS = {
    "brats2018_1mm": ((1, 4), (1, 2, 4), (4,)),
    "brats2018_2mm": ((1, 4), (1, 2, 4), (4,)),
    "brats2021": ((1, 4), (1, 2, 4), (4,)),
    "brats2023": ((1, 3), (1, 2, 3), (3,)),
    "Task01_BrainTumour": ((2, 3), (1, 2, 3), (3,)),
}


def modality_file(case: dict[str, object], names: tuple[str, ...]) -> np.ndarray:
    """Voxels of one modality, read with nibabel alone."""
    image = case["image"]
    if isinstance(image, str):  # Task01: FLAIR, T1w, t1gd, T2w
        channel = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}[names[0]]
        return np.asarray(nib.load(image).dataobj)[..., channel]
    for path in image:  # type: ignore[attr-defined]
        if str(path).split(".nii")[0].endswith(tuple(f"{s}{n}" for n in names for s in "_-")):
            return np.asarray(nib.load(path).dataobj)
    raise AssertionError(f"no file of {names} in {image}")


@pytest.mark.parametrize("folder", LAYOUTS)
def test_training_data_of_each_layout(folder: str, real_data: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.json"),
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(real_data / folder),
        bundle_root=str(tmp_path),
        roi_size=[64, 64, 64],
        num_workers=0,
    )
    workflow.initialize()
    data = workflow.parser.get_parsed_content("data")
    case = (data.training + data.validation)[0]
    find, load, reorder, orient, regions, crop, normalise, _ = workflow.parser.get_parsed_content(
        "train#deterministic_transforms"
    )
    loaded = orient(reorder(load(find(case))))
    channels = loaded["image"].numpy().copy()  # the normalisation works in place
    item = normalise(crop(regions(loaded)))

    affine = nib.load(case["label"]).affine
    truth = np.asarray(nib.load(case["label"]).dataobj)
    counts = [int(np.isin(truth, codes).sum()) for codes in LAYOUTS[folder]]
    assert item["label"].sum(dim=(1, 2, 3)).int().tolist() == counts
    assert min(counts[:2]) > 0

    flips = [axis for axis in range(2) if affine[axis, axis] > 0]  # LPS has negative x and y
    for channel, names in enumerate((("t1ce", "t1c"), ("t1", "t1n"), ("t2", "t2w"))):
        raw = np.flip(modality_file(case, names), flips)
        np.testing.assert_array_equal(channels[channel], raw.astype(np.float32))
    flair = np.flip(modality_file(case, ("flair", "t2f")), flips)
    np.testing.assert_array_equal(channels[3], flair.astype(np.float32))

    for channel in item["image"]:
        inside = channel[channel != 0]
        assert abs(float(inside.mean())) < 1e-2
        assert abs(float(inside.std()) - 1) < 1e-2


def test_own_split_is_followed(real_data: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.json"),
        logging_file=False,
        dataset_dir=str(real_data / "brats2018_2mm"),
        bundle_root=str(tmp_path),
    )
    workflow.initialize()
    data = workflow.parser.get_parsed_content("data")
    assert (len(data.training), len(data.validation)) == (30, 15)


@pytest.mark.slow
@pytest.mark.parametrize("folder", LAYOUTS)
def test_one_epoch_on_each_layout(folder: str, real_data: Path, tmp_path: Path) -> None:
    settings = [
        *("--dataset_dir", str(real_data / folder), "--bundle_root", str(tmp_path)),
        *("--epochs", "1", "--val_interval", "1", "--roi_size", "[64,64,64]"),
        *("--batch_size", "1", "--num_workers", "0", "--overlap", "0.1"),
        *small("swinunetr"),
    ]
    done = run_bundle(CONFIGS / "train.json", *settings, cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = ["--bundle_root", str(tmp_path)]
    done = run_bundle(CONFIGS / "evaluate.json", *settings, cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    written = sorted((tmp_path / "eval").glob("*_seg.nii.gz"))
    assert written
    whole = set(LAYOUTS[folder][1])
    for path in written:
        assert set(np.unique(np.asarray(nib.load(path).dataobj))) <= {0, *whole}
