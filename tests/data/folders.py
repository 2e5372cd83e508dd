"""Small data sets in each layout, written on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)
OLD = ("t1ce", "t1", "t2", "flair")
NEW = ("t1c", "t1n", "t2w", "t2f")
TASK01 = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {
        "0": "background",
        "1": "edema",
        "2": "non-enhancing tumor",
        "3": "enhancing tumour",
    },
}


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def label_map(codes: Sequence[float] = (1, 2, 4)) -> np.ndarray:
    voxels = np.zeros(SHAPE, np.uint8 if all(code == int(code) for code in codes) else np.float32)
    for index, code in enumerate(codes):
        voxels[index, : index + 1] = code
    return voxels


def write_case(
    folder: Path,
    case: str,
    *,
    suffixes: Sequence[str] = OLD,
    separator: str = "_",
    extension: str = ".nii.gz",
    codes: Sequence[float] | None = (1, 2, 4),
) -> Path:
    """One BraTS case; the voxels of channel i are all i + 1. Without a label for codes=None."""
    for index, suffix in enumerate(suffixes):
        voxels = np.full(SHAPE, index + 1, np.int16)
        write_volume(folder / f"{case}{separator}{suffix}{extension}", voxels)
    if codes is not None:
        write_volume(folder / f"{case}{separator}seg{extension}", label_map(codes))
    return folder


def write_cases(root: Path, number: int, *, codes: Sequence[float] | None = (1, 2, 4)) -> list[str]:
    cases = [f"Case_{index:02d}" for index in range(number)]
    for case in cases:
        write_case(root / case, case, codes=codes)
    return cases


def write_task01(root: Path, cases: Sequence[str] = ("BRATS_001",)) -> Path:
    """A Decathlon task; the voxels of channel i are all i + 1."""
    for case in cases:
        voxels = np.broadcast_to(np.arange(1, 5, dtype=np.int16), (*SHAPE, 4)).copy()
        write_volume(root / "imagesTr" / f"{case}.nii.gz", voxels)
        write_volume(root / "labelsTr" / f"{case}.nii.gz", label_map((1, 2, 3)))
        (root / "imagesTr" / f"._{case}.nii.gz").write_bytes(b"junk")
    (root / "dataset.json").write_text(json.dumps(TASK01))
    return root
