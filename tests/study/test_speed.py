"""When curves reach something, and what updates cost, against plain loops."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mod_components.study import Run
from mod_components.study.results import Finished, read_study
from mod_components.study.speed import LEVELS, catch_ups, costs, levels
from tests.study.made_up import make_study

PLAN: dict[str, Any] = {
    "bundles": ["unetr_mod"],
    "arms": {"baseline": {}, "mod": {}},
    "labelled": [5],
    "folds": [0],
    "seeds": [1, 2, 3],
}
# Dice at updates 10, 20 and 30
CURVES = {
    ("baseline", 1): (0.31, 0.40, 0.50),
    ("baseline", 2): (0.20, 0.36, 0.40),
    ("baseline", 3): (0.10, 0.45, 0.44),
    ("mod", 1): (0.36, 0.52, 0.51),
    ("mod", 2): (0.41, 0.42, 0.43),
    ("mod", 3): (0.10, 0.20, 0.30),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, ...]:
    def curves(run: Run, content: dict[str, Any]) -> None:
        content["updates"] = 30
        content["curve"] = [
            {"update": update, "seconds": 360.0 * update * run.seed, "val_mean_dice": dice}
            for update, dice in zip((10, 20, 30), CURVES[run.arm, run.seed], strict=True)
        ]

    return read_study(make_study(tmp_path_factory.mktemp("speed") / "study", curves, **PLAN)).runs


def test_levels_are_those_that_some_run_reaches(runs: tuple[Finished, ...]) -> None:
    assert (LEVELS[0], LEVELS[-1], len(LEVELS)) == (0.3, 0.9, 13)
    found = levels(runs)
    assert sorted({line.level for line in found}) == [0.3, 0.35, 0.4, 0.45, 0.5]
    assert {line.arm for line in found if line.level == 0.5} == {"baseline", "mod"}


def test_first_update_and_hour_at_a_level(runs: tuple[Finished, ...]) -> None:
    found = {(line.arm, line.level): line for line in levels(runs)}
    for (arm, level), line in found.items():
        reached, updates, hours = 0, [], []
        for seed in (1, 2, 3):
            first = math.inf
            for update, dice in zip((30, 20, 10), CURVES[arm, seed][::-1], strict=True):
                first = update if dice >= level else first
            reached += first < math.inf
            updates.append(first)
            hours.append(first * seed / 10)
        assert (line.runs, line.reached) == (3, reached)
        for value, expected in ((line.update, updates), (line.hours, hours)):
            middle = statistics.median(expected)
            assert math.isnan(value) if math.isinf(middle) else value == pytest.approx(middle)
    assert found["baseline", 0.3].update == 20
    assert found["mod", 0.4].update == 20
    assert math.isnan(found["mod", 0.45].update), "two of three runs are never there"


def test_share_of_the_baselines_updates(runs: tuple[Finished, ...]) -> None:
    baseline, mod = catch_ups(runs, "baseline")
    assert (baseline.arm, baseline.pairs, baseline.never) == ("baseline", 3, 0)
    assert baseline.share == 1.0  # 30, 30 and, as its curve falls at the end, 20 of 30 updates
    assert (mod.arm, mod.pairs, mod.never) == ("mod", 3, 1)
    assert mod.share == pytest.approx(2 / 3)  # 20 of 30, 10 of 30, never
    assert baseline.halfway == 0


def test_the_share_is_of_all_updates(runs: tuple[Finished, ...]) -> None:
    """Not of those at the last validation, which may lie before the end."""
    longer = [replace(run, updates=40) for run in runs]
    assert catch_ups(longer, "baseline")[0].share == 30 / 40
    assert catch_ups(longer, "baseline")[1].share == 20 / 40


def test_half_way_is_the_last_validation_of_the_first_half(runs: tuple[Finished, ...]) -> None:
    _, mod = catch_ups(runs, "baseline")
    # after 10 of 30 updates, for those after 20 are of the second half
    assert mod.halfway == pytest.approx(statistics.mean((0.36 - 0.31, 0.41 - 0.20, 0.10 - 0.10)))
    assert math.isnan(catch_ups([replace(run, updates=10) for run in runs], "baseline")[1].halfway)


def test_a_baseline_without_validations_is_no_measure(tmp_path: Path) -> None:
    def bare(run: Run, content: dict[str, Any]) -> None:
        content["curve"] = []

    runs = read_study(make_study(tmp_path, bare, **PLAN)).runs
    assert catch_ups(runs, "baseline") == []
    assert levels(runs) == []


def test_cost_of_an_update(tmp_path: Path) -> None:
    seconds = {("baseline", 1): 100.0, ("baseline", 2): 200.0, ("mod", 1): 150.0, ("mod", 2): 260.0}

    def durations(run: Run, content: dict[str, Any]) -> None:
        content["training_seconds"] = seconds.get((run.arm, run.seed), 900.0)
        content["threads"] = 1 if run.seed == 3 else 2

    def skip(run: Run) -> bool:
        return (run.arm, run.seed) == ("baseline", 3)

    found = costs(read_study(make_study(tmp_path, durations, skip, **PLAN)).runs, "baseline")
    assert [(line.arm, line.threads) for line in found] == [("baseline", 2), ("mod", 2), ("mod", 1)]
    baseline, mod, other = found
    assert (baseline.seconds.n, baseline.seconds.mean, baseline.ratio) == (2, 1.5, 1.0)
    assert baseline.seconds.sd == pytest.approx(statistics.stdev([1.0, 2.0]))
    assert mod.seconds.mean == pytest.approx(2.05)
    assert (mod.pairs, mod.ratio) == (2, pytest.approx((1.5 + 1.3) / 2))
    assert (other.pairs, other.seconds.mean) == (0, 9.0)
    assert math.isnan(other.ratio)
