"""Every kind of damage to a good data set is found: right kind, case, file, mend, nothing else."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mod_components.data.checks import check_folder
from tests.data.checks.spoil import (
    CASE,
    at,
    blank_slices,
    brightest,
    duplicate,
    every,
    flip_byte,
    link_away,
    mirror,
    move,
    pipe,
    put_nan,
    rewrite,
    set_affine,
    set_header,
    shift_label,
    split,
    swap,
    to_ceiling,
    to_plain,
    truncate,
    with_skull,
)


@dataclass
class Damage:
    """One way to spoil a data set, and the one problem that it should lead to."""

    name: str
    spoil: Callable[[Path], object]
    kind: str
    severity: str
    file: str | None  # suffix of the case's file; None for the case's folder
    mend: str
    case: str = CASE


def image(name: str, spoil: Callable[[Path], object], kind: str, mend: str) -> Damage:
    """An error of the case's T1."""
    return Damage(name, lambda root: spoil(at(root, "t1")), kind, "error", "t1", mend)


def doubt(
    name: str, spoil: Callable[[Path], object], kind: str, file: str | None, mend: str
) -> Damage:
    return Damage(name, spoil, kind, "warning", file, mend)


def label(name: str, change: Callable[[np.ndarray], np.ndarray], mend: str) -> Damage:
    """An error of the codes in the case's label map."""
    return Damage(
        name, lambda root: rewrite(at(root, "seg"), change), "label-codes", "error", "seg", mend
    )


COPY = "copy or download it again"
DAMAGES = [
    Damage("missing", lambda r: at(r, "t2").unlink(), "missing-modality", "error", None, "add the"),
    image("empty file", lambda p: p.write_bytes(b""), "empty-file", COPY),
    image("dangling link", link_away, "dangling-link", "mount or copy"),
    image("pipe", pipe, "not-a-file", "put the scan there"),
    image("text", lambda p: p.write_text("not found"), "not-nifti", COPY),
    image("packed text", lambda p: p.write_bytes(gzip.compress(b"x" * 999)), "not-nifti", COPY),
    image(
        "not compressed",
        lambda p: p.write_bytes(gzip.decompress(p.read_bytes())),
        "wrong-extension",
        "call it .nii",
    ),
    image("half of a .gz", lambda p: truncate(p, 0.5), "truncated", COPY),
    image("30 bytes of a .gz", lambda p: p.write_bytes(p.read_bytes()[:30]), "truncated", COPY),
    image("byte of a .gz flipped", lambda p: flip_byte(p, 0.6), "damaged", COPY),
    image(
        "checksum flipped",
        lambda p: p.write_bytes(p.read_bytes()[:-8] + bytes(4) + p.read_bytes()[-4:]),
        "damaged",
        COPY,
    ),
    image(
        "huge", lambda p: set_header(p, dim=[3, 9999, 9999, 9999, 1, 1, 1, 1]), "too-large", COPY
    ),
    image(
        "more than fits",
        lambda p: set_header(p, dim=[3, 500, 500, 500, 1, 1, 1, 1], datatype=64, bitpix=64),
        "truncated",
        COPY,
    ),
    image(
        "no size", lambda p: set_header(p, dim=[3, 64, 0, 64, 1, 1, 1, 1]), "bad-dimensions", COPY
    ),
    image(
        "negative",
        lambda p: set_header(p, dim=[3, 64, -80, 64, 1, 1, 1, 1]),
        "bad-dimensions",
        COPY,
    ),
    image("colour", lambda p: set_header(p, datatype=128, bitpix=24), "bad-type", "store grey"),
    image("unknown type", lambda p: set_header(p, datatype=77), "not-nifti", COPY),
    image("voxels nowhere", lambda p: set_header(p, vox_offset=np.nan), "bad-header", COPY),
    image(
        "4D", lambda p: rewrite(p, lambda v: np.stack([v, v], -1)), "dimensions", "one 3D volume"
    ),
    image("cropped", lambda p: rewrite(p, lambda v: v[1:]), "shape-mismatch", "one grid"),
    image("moved", lambda p: move(p, 3.0), "misaligned", "register the files"),
    image(
        "affine of nan", lambda p: set_header(p, srow_x=[np.nan, 0, 0, 0]), "bad-affine", "convert"
    ),
    image("flat affine", lambda p: set_header(p, srow_z=[0, 0, 0, 0]), "bad-affine", "convert"),
    image("nan in a voxel", lambda p: rewrite(p, put_nan), "non-finite", "convert the original"),
    image(
        "infinite scaling", lambda p: set_header(p, scl_slope=2, scl_inter=np.inf), "damaged", COPY
    ),
    image(
        "beyond what 32 bits hold",
        lambda p: rewrite(p, lambda v: v.astype(np.float64) * 1e300),
        "overflow",
        "export the image",
    ),
    image(
        "beyond what 32 bits can square",
        lambda p: rewrite(p, lambda v: v.astype(np.float32) * 1e33),
        "overflow",
        "export the image",
    ),
    image("zeros", lambda p: rewrite(p, lambda v: v * 0), "empty-image", "export the image"),
    image("constant", lambda p: rewrite(p, lambda v: v * 0 + 7), "constant-image", "export"),
    Damage(
        "T1 copied as FLAIR",
        lambda r: shutil.copy(at(r, "t1"), at(r, "flair")),
        "copied-modality",
        "error",
        "flair",
        "put the right file there",
    ),
    Damage(
        "sagittal",
        lambda r: every(r, lambda p: set_affine(p, 2.5 * np.eye(4)[[2, 0, 1, 3]])),
        "axis-order",
        "error",
        "t1ce",
        "LPS or RAS",
    ),
    Damage(
        "mirrored label",
        mirror,
        "label-orientation",
        "error",
        "seg",
        "orientation of the scan",
    ),
    label("code of BraTS 2023", lambda v: np.where(v == 4, 3, v), "3 is enhancing tumour from"),
    label("unknown code", lambda v: np.where(v == 1, 7, v), "correct the label map"),
    label("fractions", lambda v: v.astype(np.float32) * 0.5, "nearest neighbours"),
    label("label of nan", put_nan, COPY),
    doubt(
        "bytes after the end of a .gz",
        lambda r: at(r, "t1").write_bytes(at(r, "t1").read_bytes() + b"abcdef"),
        "trailing-data",
        "t1",
        COPY,
    ),
    doubt(
        "bytes after the end of a label's .gz",
        lambda r: at(r, "seg").write_bytes(at(r, "seg").read_bytes() + b"abcdef"),
        "trailing-data",
        "seg",
        COPY,
    ),
    Damage(
        "half of a label",
        lambda r: truncate(at(r, "seg"), 0.5),
        "truncated",
        "error",
        "seg",
        COPY,
    ),
    doubt(
        "no tumour",
        lambda r: rewrite(at(r, "seg"), lambda v: v * 0),
        "empty-label",
        "seg",
        "write the label map again",
    ),
    doubt(
        "label in a corner",
        lambda r: rewrite(at(r, "seg"), shift_label),
        "label-outside",
        "seg",
        "register the label map",
    ),
    doubt("label moved", lambda r: move(at(r, "seg"), 0.5), "misaligned", "seg", "registered"),
    doubt("clipped", lambda r: rewrite(at(r, "t2"), brightest), "saturated", "t2", "export"),
    doubt("at 15 bits", lambda r: rewrite(at(r, "t2"), to_ceiling), "saturated", "t2", "export"),
    doubt(
        "cut short",
        lambda r: rewrite(at(r, "flair"), blank_slices),
        "cut-short",
        "flair",
        "field of view",
    ),
    doubt(
        "skull",
        lambda r: every(r, with_skull, label=False),
        "not-skull-stripped",
        "t1ce",
        "skull-strip the scans",
    ),
    doubt("T1 for T1ce", lambda r: swap(r, "t1", "t1ce"), "swapped-modalities", "t1ce", "rename"),
    doubt("T2 for FLAIR", lambda r: swap(r, "t2", "flair"), "swapped-modalities", "t2", "rename"),
    doubt(
        "more than stated",
        lambda r: at(r, "t1").write_bytes(
            gzip.compress(gzip.decompress(at(r, "t1").read_bytes()) + bytes(2**21))
        ),
        "trailing-data",
        "t1",
        "states the true shape",
    ),
    Damage(
        "twice in training",
        lambda r: (duplicate(r, "Sample_003"), split(r, [CASE, "Sample_003"], ["Sample_001"])),
        "duplicate-case",
        "warning",
        None,
        "remove one of the two",
        "Sample_003",
    ),
    Damage(
        "in training and validation",
        lambda r: (duplicate(r, "Sample_003"), split(r, [CASE, "Sample_001"], ["Sample_003"])),
        "duplicate-case",
        "error",
        None,
        "remove one of the two",
        "Sample_003",
    ),
    Damage(
        "label of another case",
        lambda r: duplicate(r, "Sample_003", label_only=True),
        "duplicate-label",
        "warning",
        "seg",
        "the right label map",
        "Sample_003",
    ),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_to_a_case(sample: Path, tmp_path: Path, damage: Damage) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    damage.spoil(root)
    result = check_folder(root, progress=False)
    folder = root / damage.case
    file = folder if damage.file is None else at(root, damage.file, damage.case)
    assert [(p.kind, p.severity, p.case, p.file) for p in result.problems] == [
        (damage.kind, damage.severity, damage.case, str(file))
    ]
    (problem,) = result.problems
    assert damage.mend in problem.mend
    assert result.exit_code == (damage.severity == "error")


def test_the_sample_itself_is_good(sample: Path) -> None:
    assert check_folder(sample, progress=False).problems == ()


def test_a_plain_file_that_ends_early(sample: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    to_plain(at(root, "t1"), keep=1)
    for fast in (True, False):
        (problem,) = check_folder(root, fast=fast, progress=False).problems
        assert (problem.kind, problem.severity) == ("truncated", "error")
        assert problem.file == str(at(root, "t1").with_suffix(""))
