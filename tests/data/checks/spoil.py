"""Ways to damage a good data set on disk."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.data.folders import OLD

CASE = "Sample_002"
AFFINE_FIELDS = ("srow_x", "srow_y", "srow_z")


def at(root: Path, suffix: str, case: str = CASE) -> Path:
    return root / case / f"{case}_{suffix}.nii.gz"


def rewrite(
    path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None
) -> None:
    image = nib.load(path)
    voxels = change(np.asanyarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), path)


def set_header(path: Path, **fields: object) -> None:
    """Change header fields and nothing else of a file."""
    content = gzip.decompress(path.read_bytes())
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(header.binaryblock + content[348:], 1))


def set_affine(path: Path, affine: np.ndarray) -> None:
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    rows = dict(zip(AFFINE_FIELDS, affine[:3], strict=True))
    set_header(path, **rows, sform_code=1, pixdim=[1, *sizes, 0, 0, 0, 0])


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse to list a folder, as the system does without the right to read it."""
    scandir, listdir = os.scandir, os.listdir

    def refusing(usual: Callable[..., Any]) -> Callable[..., Any]:
        def listed(path: str | os.PathLike[str] = ".") -> Any:
            if os.fspath(path) == str(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            return usual(path)

        return listed

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))


def every(root: Path, spoil: Callable[[Path], object], *, label: bool = True) -> None:
    for suffix in (*OLD, "seg") if label else OLD:
        spoil(at(root, suffix))


def move(path: Path, millimetres: float) -> None:
    affine = nib.load(path).affine.copy()
    affine[1, 3] += millimetres
    set_affine(path, affine)


def swap(root: Path, one: str, other: str) -> None:
    at(root, one).rename(root / "aside")
    at(root, other).rename(at(root, one))
    (root / "aside").rename(at(root, other))


def flip_byte(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def to_plain(path: Path, keep: int) -> None:
    """Decompress in place of the .gz, cut short by ``keep`` bytes."""
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())[:-keep])
    path.unlink()


def put_nan(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.astype(np.float32)
    voxels[30, 40, 30] = np.nan
    return voxels


def brightest(voxels: np.ndarray) -> np.ndarray:
    """Clip the brightest 5% of the foreground."""
    return np.minimum(voxels, np.percentile(voxels[voxels > 0], 95).astype(voxels.dtype))


def to_ceiling(voxels: np.ndarray) -> np.ndarray:
    voxels.ravel()[np.argsort(voxels.ravel())[-20:]] = 32767
    return voxels


def shift_label(voxels: np.ndarray) -> np.ndarray:
    """Move the tumour into a corner, where there is no brain."""
    where = np.argwhere(voxels)
    low, high = where.min(0), where.max(0) + 1
    moved = np.zeros_like(voxels)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    moved[tuple(slice(0, int(b - a)) for a, b in zip(low, high, strict=True))] = voxels[box]
    return moved


def blank_slices(voxels: np.ndarray) -> np.ndarray:
    voxels[:, :, 38:] = 0
    return voxels


def with_skull(path: Path) -> None:
    def fill(voxels: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).integers(1, 20, voxels.shape, voxels.dtype)
        return np.where(voxels == 0, noise, voxels)

    rewrite(path, fill)


def duplicate(root: Path, case: str, *, label_only: bool = False) -> None:
    for suffix in ("seg",) if label_only else (*OLD, "seg"):
        shutil.copy(at(root, suffix), at(root, suffix, case))


def link_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all.nii.gz")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def mirror(root: Path) -> None:
    """Store the label map in another orientation."""
    mirrored = nib.load(at(root, "t1")).affine @ np.diag([-1.0, 1, 1, 1])
    rewrite(at(root, "seg"), lambda voxels: voxels, mirrored)


def split(root: Path, train: list[str], validation: list[str]) -> None:
    content = {"train": train, "validation": validation}
    (root / "splits.json").write_text(json.dumps(content))


def write_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def as_task01(root: Path, dataset_json: str) -> None:
    """The first case's files as a Decathlon task with this dataset.json."""
    (root / "imagesTr").mkdir()
    images = [nib.load(at(root, suffix)) for suffix in OLD]
    voxels = np.stack([np.asanyarray(one.dataobj) for one in images], -1)
    nib.save(nib.Nifti1Image(voxels, images[0].affine), root / "imagesTr" / "B.nii.gz")
    (root / "dataset.json").write_text(dataset_json)


def all_ras(root: Path) -> None:
    every(root, lambda p: set_affine(p, np.diag([2.5, 2.5, 2.5, 1])))


def other_spacing(root: Path) -> None:
    every(root, lambda p: set_affine(p, np.diag([-2.0, -2.0, 2.0, 1])))
