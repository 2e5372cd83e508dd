"""Only finished runs of the plan count, and their figures are plain means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mod_components.errors import DataError
from mod_components.study import Run
from mod_components.study.results import by_arm, grouped, known_mean, read_study
from tests.study.made_up import PLAN, load, make_study, write

FIRST = Run("unetr_mod", "baseline", 5, 0, 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("results") / "study", skip=lambda run: run.seed == 2)


def test_runs_that_are_not_finished_or_not_planned_do_not_count(study: Path) -> None:
    write(study, Run("unetr_mod", "mod", 5, 0, 99), {})
    results = read_study(study)
    assert len(results.planned) == 2 * 3 * 2 * 2 * 2
    assert len(results.runs) == len(results.planned) // 2
    assert {found.run.seed for found in results.runs} == {1}
    assert (results.name, results.about) == (PLAN["name"], PLAN["about"])
    assert results.changed == ()


def test_runs_stand_in_the_order_of_tables(study: Path) -> None:
    results = read_study(study)
    groups = grouped(results.runs)
    assert list(groups) == [(b, n) for b in ("unetr_mod", "vit_mod") for n in (5, 0)]
    for group in groups.values():
        assert list(by_arm(group)) == ["baseline", "mod", "scans"]
        assert [found.run.fold for found in by_arm(group)["mod"]] == [0, 1]


def test_figures_of_a_run_are_means_over_its_cases(study: Path) -> None:
    found = read_study(study).runs[0]
    assert found.run == FIRST
    rows = load(study, FIRST)["scores"].values()
    for metric in ("dice", "hd95"):
        total = 0.0
        for region in ("tc", "wt", "et"):
            values = [row[f"{metric}_{region}"] for row in rows]
            assert found.mean(f"{metric}_{region}") == pytest.approx(sum(values) / 4)
            total += sum(values)
        assert found.mean(metric) == pytest.approx(total / 12)
    assert (found.training, found.updates, found.seconds, found.threads) == (5, 100, 200.0, 2)
    assert (found.curve[0].update, found.curve[0].seconds) == (25, 50.0)


def test_a_curve_ends_with_the_last_update(tmp_path: Path) -> None:
    """Validations lie a whole number of epochs apart, so that the last may be before the end."""

    def longer(run: Run, content: dict[str, Any]) -> None:
        content |= {"updates": 110, "training_seconds": 999.0}

    runs = by_arm(read_study(make_study(tmp_path, longer, bundles=["vit_mod"])).runs)
    end = runs["mod"][0].curve[-1]
    assert (end.update, end.seconds) == (110, 999.0)
    assert end.dice == runs["mod"][0].mean("dice")
    assert len(runs["mod"][0].curve) == 5
    # of an averaged network: not the one that was validated
    assert runs["scans"][0].curve[-1].update == 100


def test_undefined_values_are_left_out(tmp_path: Path) -> None:
    def undefined(run: Run, content: dict[str, Any]) -> None:
        first, second = list(content["scores"].values())[:2]
        first.update(hd95_tc=None, hd95_wt=2.0, hd95_et=4.0)
        second.update(hd95_tc=None, hd95_wt=None, hd95_et=None)
        content["curve"][0]["val_mean_dice"] = None

    study = make_study(tmp_path, undefined)
    found = read_study(study).runs[0]
    cases = list(found.by_case("hd95").values())
    assert cases[0] == 3.0
    assert math.isnan(cases[1])
    assert found.mean("hd95") == pytest.approx((3.0 + cases[2] + cases[3]) / 3)
    rows = list(load(study, FIRST)["scores"].values())
    assert found.mean("hd95_tc") == pytest.approx((rows[2]["hd95_tc"] + rows[3]["hd95_tc"]) / 2)
    assert [point.update for point in found.curve] == [50, 75, 100]


def test_known_mean() -> None:
    values = np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    assert known_mean(values, axis=1)[0] == 2.0
    assert np.isnan(known_mean(values, axis=1)[1])
    assert np.isnan(known_mean(values, axis=0)).tolist() == [False, True, False]


def test_probes_are_told_apart(tmp_path: Path) -> None:
    def probe(run: Run, content: dict[str, Any]) -> None:
        if run.arm != "baseline":
            content["probe"] = "linear" if run.arm == "mod" else "strict"

    results = read_study(make_study(tmp_path, probe))
    kinds = {found.run.arm: found.probe for found in results.runs}
    assert kinds == {"baseline": "", "mod": "linear", "scans": "strict"}


def test_an_arm_that_is_not_evaluated_needs_no_scores(tmp_path: Path) -> None:
    def nothing(run: Run, content: dict[str, Any]) -> None:
        if run.arm == "mod":
            content.update(scores={}, curve=[])

    arms = {**PLAN["arms"], "mod": {"evaluate": False, "labelled": 0}}
    results = read_study(make_study(tmp_path / "right", nothing, arms=arms))
    assert {found.run.labelled for found in results.runs if not found.scores} == {0}
    with pytest.raises(DataError, match="it has no scores"):
        read_study(make_study(tmp_path / "wrong", nothing))


def test_runs_of_other_settings_are_named(tmp_path: Path) -> None:
    def other(run: Run, content: dict[str, Any]) -> None:
        if run == FIRST:
            content["digest"] = "0" * 16

    results = read_study(make_study(tmp_path, other))
    assert results.changed == ("runs/unetr_mod/baseline/n5/fold0/seed1",)


def test_a_data_set_named_on_the_command_line_is_no_other_setting(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    plan = (study / "plan.json").read_text()
    (study / "plan.json").write_text(plan.replace("somewhere/Task00_MadeUp", ""))
    assert read_study(study).changed == ()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("scores"),
        lambda content: content.update(scores={}),
        lambda content: content.update(updates=0),
        lambda content: content.update(seed=7),
        lambda content: content.update(curve=[{"update": 3}]),
        lambda content: content.update(training_seconds="long"),
        lambda content: content["scores"]["case_0_0"].pop("hd95_et"),
        lambda content: content["scores"]["case_0_0"].update(dice_tc="high"),
        lambda content: content.update(scores=[1, 2]),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, damage: Any) -> None:
    study = make_study(tmp_path, skip=lambda run: run != FIRST)
    content = load(study, FIRST)
    damage(content)
    path = write(study, FIRST, content)
    with pytest.raises(DataError, match="is damaged") as error:
        read_study(study)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_record_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    study = make_study(tmp_path, skip=lambda run: run != FIRST)
    (study / FIRST.folder / "finished.json").write_text(text)
    with pytest.raises(DataError, match=r"seed1/finished.json is damaged"):
        read_study(study)


def test_a_folder_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"plan\.json"):
        read_study(tmp_path)
