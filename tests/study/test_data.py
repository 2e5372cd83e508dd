from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mod_components.data import make_sample, select
from mod_components.errors import SettingsError
from mod_components.study import Plan, Run, read_plan
from mod_components.study.data import labelled_cases, run_datalist, study_datalist

CASES = [f"case_{index:03d}" for index in range(30)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("data") / "sample", cases=6)


def plan_of(
    data: Path,
    folder: Path,
    labelled: list[int],
    folds: list[int],
    arm: dict[str, Any] | None = None,
) -> Plan:
    content = {
        "bundles": ["unetr_mod"],
        "arms": {"baseline": {"use_mod": False}, "other": arm or {}},
        "updates": 4,
        "dataset_dir": str(data),
        "labelled": labelled,
        "folds": folds,
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(content))
    return read_plan(path)


def test_fewer_labelled_cases_are_among_more() -> None:
    for seed in range(5):
        few, more = (set(labelled_cases(CASES, number, seed)) for number in (5, 15))
        assert (len(few), len(more)) == (5, 15)
        assert few < more
    assert labelled_cases(CASES, 0, 1) == CASES
    assert labelled_cases(CASES[::-1], 5, 1) == labelled_cases(CASES, 5, 1)


def test_seeds_choose_different_cases() -> None:
    chosen = {tuple(labelled_cases(CASES, 5, seed)) for seed in range(20)}
    assert len(chosen) == 20
    together = {case for cases in chosen for case in cases}
    assert len(together) > 25, "each case should have its turn"


def test_a_run_has_its_labelled_cases_and_the_held_out_ones(data: Path, tmp_path: Path) -> None:
    datalist = study_datalist(plan_of(data, tmp_path, [2], [0, 1]))
    for fold in (0, 1):
        pool, held_out = ([c["case"] for c in part] for part in select(datalist, fold))
        own = run_datalist(datalist, Run("unetr_mod", "baseline", 2, fold, 7))
        training, validation = ([c["case"] for c in part] for part in select(own, fold))
        assert training == labelled_cases(pool, 2, 7)
        assert validation == held_out


def test_all_cases_leave_the_list_as_it_is(data: Path, tmp_path: Path) -> None:
    datalist = study_datalist(plan_of(data, tmp_path, [0], [-1]))
    assert run_datalist(datalist, Run("unetr_mod", "baseline", 0, -1, 3)) == datalist


def test_folds_do_not_depend_on_the_seeds_of_runs(data: Path, tmp_path: Path) -> None:
    first = study_datalist(plan_of(data, tmp_path, [2], [0]))
    assert first["seed"] == 42


def test_more_labelled_cases_than_there_are(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"asks for 6 cases, and 4 of .* when fold 0"):
        study_datalist(plan_of(data, tmp_path, [2, 6], [0]))


def test_all_cases_by_their_number_leave_no_scan_without_labels(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"4 are all cases .* for other: write 0, which is all"):
        study_datalist(plan_of(data, tmp_path, [2, 4], [0], {"unlabelled": True}))
    study_datalist(plan_of(data, tmp_path, [2, 0], [0], {"unlabelled": True}))
    study_datalist(plan_of(data, tmp_path, [2, 4], [0]))


def test_a_fold_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="fold must be"):
        study_datalist(plan_of(data, tmp_path, [2], [9]))


def test_an_arm_of_its_own_wants_more_labelled_cases_than_there_are(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="asks for 500 cases"):
        study_datalist(plan_of(data, tmp_path, [2], [0], {"labelled": 500}))


def test_two_folds_that_hold_out_the_same_cases(data: Path, tmp_path: Path) -> None:
    without = tmp_path / "data"
    shutil.copytree(data, without)
    (without / "splits.json").unlink()
    for folds in ([-1], [0], [-1, 1]):
        study_datalist(plan_of(without, tmp_path, [2], folds))
    with pytest.raises(SettingsError, match="-1 and 0 hold out the same ones"):
        study_datalist(plan_of(without, tmp_path, [2], [-1, 0]))
    study_datalist(plan_of(data, tmp_path, [2], [-1, 0]))
