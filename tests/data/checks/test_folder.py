"""What is wrong with a folder, and what only shows when its cases are seen together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mod_components.data.checks import check_folder, table
from tests.data.checks.spoil import (
    CASE,
    all_ras,
    as_task01,
    at,
    duplicate,
    forbid,
    other_spacing,
    split,
    write_text,
)
from tests.data.folders import OLD, write_task01

FOLDER_DAMAGES = [
    ("gone", lambda r: shutil.rmtree(r), "no-folder", "error", "Give the folder"),
    (
        "nothing inside",
        lambda r: (shutil.rmtree(r), r.mkdir()),
        "no-case",
        "error",
        "Layouts understood",
    ),
    (
        "two layouts",
        lambda r: [
            at(r, old).rename(r / CASE / f"{CASE}-{new}.nii.gz")
            for old, new in zip((*OLD, "seg"), ("t1c", "t1n", "t2w", "t2f", "seg"), strict=True)
        ],
        "mixed-layouts",
        "error",
        "Give the folder of one",
    ),
    (
        "the same id twice",
        lambda r: shutil.copytree(r / CASE, r / "again" / CASE),
        "case-twice",
        "error",
        "rename or remove",
    ),
    ("dataset.json", lambda r: as_task01(r, "{"), "bad-dataset-json", "error", "Take the"),
    (
        "modality of dataset.json",
        lambda r: as_task01(r, json.dumps({"modality": {"0": "CT"}})),
        "bad-dataset-json",
        "error",
        "Correct the names",
    ),
    ("splits.json", write_text("splits.json", "[]"), "bad-splits", "error", '"train": [ids]'),
    (
        "JSON without end",
        lambda r: as_task01(r, "[" * 100_000),
        "unreadable-folder",
        "error",
        "give the folder",
    ),
    (
        "splits.json without end",
        write_text("splits.json", "[" * 100_000),
        "bad-splits",
        "error",
        '"train": [ids]',
    ),
    (
        "nnU-Net's name of a list in splits.json",
        write_text("splits.json", '{"train": ["Sample_001"], "val": ["Sample_002"]}'),
        "bad-splits",
        "error",
        '"train": [ids]',
    ),
    (
        "unknown id in splits.json",
        lambda r: split(r, ["Sample_001"], ["Nobody"]),
        "bad-splits",
        "error",
        '"train": [ids]',
    ),
    (
        "no label at all",
        lambda r: ([p.unlink() for p in r.rglob("*_seg.nii.gz")], (r / "splits.json").unlink()),
        "no-labels",
        "warning",
        "--unlabelled_dir",
    ),
    (
        "one label gone",
        lambda r: (at(r, "seg").unlink(), (r / "splits.json").unlink()),
        "no-label",
        "warning",
        "add them",
    ),
    (
        "a prediction inside",
        lambda r: (r / "out").mkdir() or shutil.copy(at(r, "seg"), r / "out"),
        "case-twice",
        "error",
        "probably a prediction",
    ),
    ("one case RAS", all_ras, "orientation", "warning", "nothing to do"),
    ("one case of 2 mm", other_spacing, "mixed-spacing", "warning", "resample"),
]


@pytest.mark.parametrize(
    ("spoil", "kind", "severity", "mend"),
    [damage[1:] for damage in FOLDER_DAMAGES],
    ids=[damage[0] for damage in FOLDER_DAMAGES],
)
def test_damage_to_the_folder(
    sample: Path,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    kind: str,
    severity: str,
    mend: str,
) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    spoil(root)
    result = check_folder(root, progress=False)
    (problem,) = result.problems
    assert (problem.kind, problem.severity, problem.case) == (kind, severity, "")
    assert problem.file in (str(root), str(root / "splits.json"))
    assert mend in problem.mend
    assert result.exit_code == (severity == "error")
    assert kind in table(result)


def test_a_folder_that_cannot_be_read(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    forbid(monkeypatch, root / CASE)
    (problem,) = check_folder(root, progress=False).problems
    assert (problem.kind, problem.severity) == ("unreadable-folder", "error")
    assert problem.message == f"Folder {root / CASE} can't be read (Permission denied)"
    assert "chmod u+rx" in problem.mend


@pytest.mark.parametrize(
    ("train", "validation", "severities"),
    [
        # the third is compared with the second, not only with the unlisted first
        (["Sample_003"], ["Sample_004"], ["warning", "error"]),
        (["Sample_004"], ["Sample_003"], ["warning", "error"]),
        ([CASE, "Sample_003"], ["Sample_004"], ["warning", "error"]),
        ([CASE, "Sample_004"], ["Sample_003"], ["error", "error"]),
        (["Sample_003", "Sample_004"], ["Sample_001"], ["warning", "warning"]),
    ],
)
def test_three_copies_of_a_case(
    sample: Path,
    tmp_path: Path,
    train: list[str],
    validation: list[str],
    severities: list[str],
) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    (root / "Sample_004").mkdir()
    for case in ("Sample_003", "Sample_004"):
        duplicate(root, case)
    split(root, train, validation)
    problems = check_folder(root, progress=False).problems
    assert {p.kind for p in problems} == {"duplicate-case"}
    assert [p.case for p in problems] == ["Sample_003", "Sample_004"]
    assert [p.severity for p in problems] == severities
    for problem in problems:
        if problem.severity == "error":
            across = validation if problem.case in train else train
            assert f"the same voxels as {across[0]} in" in problem.message


def test_decathlon_label_maps_without_an_image(tmp_path: Path) -> None:
    root = write_task01(tmp_path, ("B_1", "B_2", "B_3"))
    (root / "labelsTr" / "B_3.nii.gz").rename(root / "labelsTr" / "C_3.nii.gz")
    shutil.copy(root / "labelsTr" / "B_1.nii.gz", root / "labelsTr" / "B_1.nii")
    problems = {p.kind: p for p in check_folder(root, fast=True, progress=False).problems}
    assert set(problems) == {"label-without-image", "no-label", "file-twice", "orientation"} | (
        {"wrong-extension"}  # the copy is not packed anew
    )
    assert problems["label-without-image"].message.endswith(": C_3.nii.gz")
    assert problems["label-without-image"].severity == "warning"
    assert problems["no-label"].message == "no label map, unlike 2 other cases: B_3"


def test_what_is_wrong_with_splits_json_is_said_once(sample: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    split(root, ["Sample_001"], ["Nobody"])
    (problem,) = check_folder(root, fast=True, progress=False).problems
    assert problem.message == "lists cases not in the folder: Nobody"
    assert problem.mend.startswith("It should be {")


def test_splits_are_read_with_the_legacy_codes(tmp_path: Path) -> None:
    root = write_task01(tmp_path, ("B_1", "B_2"))
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "a", "2": "b", "3": "c"}
    (root / "dataset.json").write_text(json.dumps(content))
    split(root, ["B_1"], ["B_2"])
    assert [p.kind for p in check_folder(root, fast=True, progress=False).problems] == [
        "bad-dataset-json"
    ]
    problems = check_folder(root, fast=True, legacy_et=True, progress=False).problems
    assert [p.kind for p in problems] == ["orientation"]
