"""What a training does with bad cases: refuse the set, or leave them out and say so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mod_components.data import DataError, check_cases, find_layout, refuse_bad_cases, scan
from mod_components.data.checks import run, usable_cases
from tests.data.folders import label_map, write_cases, write_volume


def empty(root: Path, case: str, suffix: str = "t1") -> None:
    (root / case / f"{case}_{suffix}.nii.gz").write_bytes(b"")


def test_all_errors_at_once_but_no_flood(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cases = write_cases(tmp_path, 25, codes=None)
    for case in cases:
        empty(tmp_path, case)
    with pytest.raises(DataError, match=r"25 of 25 cases") as caught:
        refuse_bad_cases(scan(tmp_path), find_layout(tmp_path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert cases[0] in lines[1]
    assert lines[-1] == "  … and 5 more"
    assert "checking cases" in capsys.readouterr().err


def test_usable_cases_are_all_cases_where_nothing_is_wrong(tmp_path: Path) -> None:
    write_cases(tmp_path, 3)
    records = scan(tmp_path)
    for skip_bad in (False, True):
        assert usable_cases(records, find_layout(tmp_path), skip_bad=skip_bad) == (records, [])


def test_bad_cases_are_refused_with_a_hint(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 3)
    empty(tmp_path, cases[1])
    with pytest.raises(DataError, match=r"(?s)1 of 3 cases.*Case_01.*empty") as caught:
        usable_cases(scan(tmp_path), find_layout(tmp_path))
    assert str(caught.value).endswith("--skip_bad_cases true goes on with the rest.")


def test_bad_cases_are_left_out_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = write_cases(tmp_path, 4)
    empty(tmp_path, cases[1])
    empty(tmp_path, cases[3], "t2")
    empty(tmp_path, cases[3], "flair")
    write_volume(tmp_path / cases[0] / f"{cases[0]}_seg.nii.gz", label_map(()))
    with caplog.at_level(logging.WARNING):
        good, problems = usable_cases(scan(tmp_path), find_layout(tmp_path), skip_bad=True)
    assert [record.case for record in good] == [cases[0], cases[2]]
    assert problems == check_cases(scan(tmp_path), find_layout(tmp_path))
    (left_out,) = [r.message for r in caplog.records if "left out" in r.message]
    assert left_out.startswith("2 of 4 cases are left out:")
    assert f"{cases[1]}_t1.nii.gz: the file is empty" in left_out
    assert f"{cases[3]}_t2.nii.gz: the file is empty" in left_out
    assert "flair" not in left_out


def test_no_case_left_is_an_error(tmp_path: Path) -> None:
    (case,) = write_cases(tmp_path, 1)
    empty(tmp_path, case)
    with pytest.raises(DataError, match="No case is left to use"):
        usable_cases(scan(tmp_path), find_layout(tmp_path), skip_bad=True)


def test_a_check_that_fails_is_a_problem_of_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = write_cases(tmp_path, 2)

    def odd_check(case: object) -> list:
        if case.record.case == cases[0]:  # type: ignore[attr-defined]
            raise MemoryError("too much")
        return []

    monkeypatch.setattr(run, "CHECKS", (*run.CHECKS, odd_check))
    (problem,) = check_cases(scan(tmp_path), find_layout(tmp_path))
    assert (problem.case, problem.kind, problem.severity) == (cases[0], "check-failed", "error")
    assert "odd check failed (MemoryError: too much)" in problem.message
