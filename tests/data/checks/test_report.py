"""The report on a folder: facts, a readable table, JSON without surprises."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from mod_components.data.checks import check_folder, table
from tests.data.checks.spoil import at, set_affine
from tests.data.folders import SHAPE, write_case, write_cases, write_task01, write_volume


def test_facts_of_every_case(tmp_path: Path) -> None:
    write_case(tmp_path / "A", "A", codes=(1, 2))
    folder = write_case(tmp_path / "B", "B", codes=None)
    for name in ("t1ce", "t1", "t2", "flair"):
        write_volume(folder / f"B_{name}.nii.gz", np.ones(SHAPE, np.int16), np.diag([1, 1.5, 2, 1]))
    (folder / "B_t2.nii.gz").unlink()
    result = check_folder(tmp_path, fast=True, progress=False)
    a, b = result.as_dict()["cases"]
    assert a == {
        "case": "A",
        "shape": [6, 5, 4],
        "spacing_mm": [1.0, 1.0, 1.0],
        "orientation": "RAS",
        "labelled": True,
        "codes": [1, 2],
        "missing": [],
    }
    assert (b["spacing_mm"], b["labelled"], b["codes"]) == ([1.0, 1.5, 2.0], False, [])
    assert b["missing"] == ["T2"]
    assert {p.kind for p in result.problems} == {
        "missing-modality",
        "orientation",
        "mixed-spacing",
    }
    assert result.exit_code == 1


def test_table(sample: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    (root / "Sample_002" / "Sample_002_t1.nii.gz").write_bytes(b"")
    lines = table(check_folder(root, progress=False)).splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 120
    assert "cases         3 (3 with a label map)" in lines
    assert "shapes        64 × 80 × 64 (3)" in lines
    assert "orientations  LPS (3)" in lines
    rows = [line for line in lines if line.startswith("Sample_")]
    assert [row.split()[-1] for row in rows] == ["-", "error", "-"]
    assert "1 error, 0 warnings" in lines
    path = os.path.join("Sample_002", "Sample_002_t1.nii.gz")
    assert f"error   empty-file: Sample_002, {path}" in lines
    assert "        → copy or download it again" in lines
    assert str(root) not in text.replace(f"folder        {root}", "")


def test_many_cases_are_counted_and_only_bad_ones_listed(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 51)
    (tmp_path / cases[7] / f"{cases[7]}_t1.nii.gz").write_bytes(b"")
    text = table(check_folder(tmp_path, fast=True, progress=False))
    assert f"\n{cases[7]} " in text
    assert f"\n{cases[8]} " not in text
    assert "50 other cases without problems" in text


def test_problems_that_many_cases_have_alike_are_one_entry(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 120)
    for index, case in enumerate(cases):
        affine = np.diag([-1 - 0.003 * index, -1, 1, 1])
        for suffix in ("t1ce", "t1", "t2", "flair", "seg"):
            set_affine(at(tmp_path, suffix, case), affine)
    for index, case in enumerate(cases[:90]):
        affine[:3, 3] = 1 + index
        set_affine(at(tmp_path, "t2", case), affine)
    for case in cases[:9]:
        at(tmp_path, "t1", case).write_bytes(b"")
    result = check_folder(tmp_path, fast=True, progress=False)
    assert len(result.as_dict()["problems"]) == len(result.problems) == 90 + 9 + 1
    lines = table(result).splitlines()
    (entry,) = [line for line in lines if line.startswith("error   misaligned")]
    first = os.path.join(cases[0], f"{cases[0]}_t2.nii.gz")
    assert entry == f"error   misaligned: 90 cases, the first of them {cases[0]}, {first}"
    listed = " ".join(lines[lines.index(entry) :])
    assert all(f" {case}," in listed for case in cases[:89])
    assert sum(line.startswith("error   empty-file") for line in lines) == 9  # too few to join
    text = " ".join(" ".join(lines).split())
    sizes = text[text.index("spacings") : text.index("orientations")]
    assert sizes.count("×") == 2 * 5
    assert sizes.endswith("and 115 more ")
    assert lines[-1] == "99 errors, 1 warning"
    assert lines.count(lines[-1]) == 2
    assert len(lines) < 130


def test_problems_that_differ_in_words_stay_apart(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 16)
    for index, case in enumerate(cases):
        at(tmp_path, "t1" if index % 2 else "t2", case).unlink()
    lines = table(check_folder(tmp_path, fast=True, progress=False)).splitlines()
    assert sum(line.startswith("error   missing-modality") for line in lines) == 16


def test_json(sample: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    for suffix in ("t1ce", "t1", "t2", "flair", "seg"):
        nans = np.full((4, 4), np.nan)
        set_affine(at(root, suffix, "Sample_001"), nans)
    result = check_folder(root, progress=False)
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["layout"] == "brats"
    assert content["errors"] == len(result.errors) > 0
    assert content["cases"][0]["spacing_mm"] == []
    assert content["problems"][0] == {
        "kind": "bad-affine",
        "severity": "error",
        "case": "Sample_001",
        "file": os.path.join("Sample_001", "Sample_001_t1ce.nii.gz"),
        "message": result.problems[0].message,
        "mend": result.problems[0].mend,
    }


def test_fast_reads_no_image(sample: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample, tmp_path / "data")
    path = root / "Sample_001" / "Sample_001_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    result = check_folder(root, fast=True, progress=False)
    assert result.problems == ()
    assert "headers and label maps only" in table(result)
    assert [p.kind for p in check_folder(root, progress=False).problems] == ["truncated"]


def test_decathlon_channels_are_named(tmp_path: Path) -> None:
    root = write_task01(tmp_path)  # every channel is constant
    problems = [p for p in check_folder(root, progress=False).problems if p.severity == "error"]
    assert [p.message for p in problems] == [
        "T1ce: all voxels are 3",
        "T1: all voxels are 2",
        "T2: all voxels are 4",
        "FLAIR: all voxels are 1",
    ]


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_names_that_are_no_text(sample: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"Fall \xe4 1")
    folder = tmp_path / name
    for suffix in ("t1ce", "t1", "t2", "flair", "seg"):
        folder.mkdir(exist_ok=True)
        source = sample / "Sample_001" / f"Sample_001_{suffix}.nii.gz"
        shutil.copy(source, folder / f"{name}_{suffix}.nii.gz")
    (folder / f"{name}_t1.nii.gz").write_bytes(b"")
    result = check_folder(tmp_path, progress=False)
    assert [p.kind for p in result.problems] == ["bad-name", "empty-file"]
    assert result.problems[0].message == r"its name is not UTF-8: 'Fall \udce4 1'"
    table(result).encode("utf-8")
    json.dumps(result.as_dict()).encode("utf-8")


def test_progress_and_workers(sample: Path, capsys: pytest.CaptureFixture) -> None:
    alone = check_folder(sample, workers=1, progress=False)
    assert capsys.readouterr().err == ""
    assert check_folder(sample, workers=3) == alone
    assert "checking cases" in capsys.readouterr().err


# What the rules find in published scans; each of these has been looked at.
REAL = {
    "brats2018_1mm": [("cut-short", "Brats18_2013_20_1")],
    "brats2018_2mm": [("cut-short", "Brats18_2013_20_1")],
    "brats2021": [],
    "brats2023": [],
    "Task01_BrainTumour": [("orientation", "")],
}


@pytest.mark.real_data
@pytest.mark.parametrize("folder", REAL)
def test_real_cases(real_data: Path, folder: str) -> None:
    start = time.perf_counter()
    result = check_folder(real_data / folder, workers=1, progress=False)
    assert [(p.kind, p.case) for p in result.problems] == REAL[folder]
    assert result.exit_code == 0
    assert time.perf_counter() - start < 30
    fast = check_folder(real_data / folder, fast=True, progress=False)
    assert {p.kind for p in fast.problems} <= {"orientation"}
