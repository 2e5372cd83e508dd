"""The records that docs/study.md speaks of are there, and a report reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mod_components.study.results import read_study

STUDY = Path(__file__).parents[2] / "docs" / "study"
FOLDERS = sorted(plan.parent for plan in STUDY.glob("*/*/plan.json"))
EVALUATED = {6: range(5), 15: [-1]}  # a fifth of 30 cases, or the validation cases, by fold


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_runs_can_be_read_and_fit_its_plan(folder: Path) -> None:
    found = read_study(folder)
    assert found.runs
    assert not found.changed
    for run in found.runs:
        assert not run.scores or run.run.fold in EVALUATED[len(run.scores)]
        # the last validation of a finished run is less than an interval from its end
        assert not run.curve or 0 <= run.updates - run.curve[-1].update < run.curve[0].update


def test_every_folder_that_the_document_names_has_records() -> None:
    named = re.findall(r"docs/study/((?:trials|results)/\w+)", STUDY.with_suffix(".md").read_text())
    assert named
    assert set(named) <= {folder.relative_to(STUDY).as_posix() for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_record_names_a_folder_of_a_machine(folder: Path) -> None:
    for record in folder.glob("runs/**/finished.json"):
        assert '"/' not in record.read_text(), record
