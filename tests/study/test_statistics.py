"""Each statistic against another way to compute it."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mod_components.errors import DataError
from mod_components.study import Run
from mod_components.study.results import Finished, grouped, read_study
from mod_components.study.statistics import (
    COMPARED,
    Difference,
    crossed_intervals,
    differences,
    independent,
    paired_test,
    pairs_of,
    spread,
)
from tests.study.made_up import make_study


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, ...]:
    return read_study(make_study(tmp_path_factory.mktemp("statistics") / "study")).runs


def one(found: list[Difference], arm: str, metric: str = "dice") -> Difference:
    (line,) = [line for line in found if (line.arm, line.metric) == (arm, metric)]
    return line


def test_spread_of_runs() -> None:
    values = [0.5, 0.75, 0.875]
    found = spread([*values, math.nan])
    assert found.n == 3
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.sd == pytest.approx(statistics.stdev(values))
    alone, nothing = spread([0.5]), spread([])
    assert (alone.n, alone.mean) == (1, 0.5)
    assert math.isnan(alone.sd)
    assert nothing.n == 0
    assert math.isnan(nothing.mean)


def test_differences_are_the_paired_t_test_of_the_folds_means(runs: tuple[Finished, ...]) -> None:
    found = differences(runs, "baseline")
    assert len(found) == 2 * 2 * 2 * len(COMPARED)
    for (bundle, labelled), group in grouped(runs).items():
        for arm in ("mod", "scans"):
            for metric in COMPARED:
                means = {
                    name: [run.mean(metric) for run in group if run.run.arm == name]
                    for name in ("baseline", arm)
                }
                # two pairs in each of two folds: a fold counts once
                by_fold = {
                    name: np.reshape(own, (2, 2)).mean(axis=1) for name, own in means.items()
                }
                expected = stats.ttest_rel(by_fold[arm], by_fold["baseline"])
                interval = expected.confidence_interval(0.95)
                (line,) = [
                    d
                    for d in found
                    if (d.bundle, d.labelled, d.arm, d.metric) == (bundle, labelled, arm, metric)
                ]
                assert (line.pairs, line.counted, line.cases) == (4, 2, 8)
                assert line.mean == pytest.approx(np.mean(means[arm]) - np.mean(means["baseline"]))
                assert (line.t_low, line.t_high) == pytest.approx((interval.low, interval.high))
                assert line.p == pytest.approx(expected.pvalue)
                assert line.both_low < line.mean < line.both_high


def test_holm_counts_the_arms_of_a_bundle_and_number_of_cases(runs: tuple[Finished, ...]) -> None:
    found = differences(runs, "baseline")
    for bundle, labelled in grouped(runs):
        own = [d for d in found if (d.bundle, d.labelled) == (bundle, labelled)]
        for metric in COMPARED:
            arms = [one(own, arm, metric) for arm in ("mod", "scans")]
            low, high = sorted(arms, key=lambda line: line.p)
            assert low.p_holm == pytest.approx(min(1, 2 * low.p))
            assert high.p_holm == pytest.approx(max(low.p_holm, high.p))


def test_only_runs_with_a_partner_are_compared(tmp_path: Path) -> None:
    lone = (Run("unetr_mod", "baseline", 5, 0, 1), Run("unetr_mod", "mod", 5, 1, 2))
    study = make_study(tmp_path, skip=lone.__contains__, bundles=["unetr_mod"], labelled=[5])
    runs = read_study(study).runs
    pairs = pairs_of(runs, "baseline")
    assert {arm: len(own) for arm, own in pairs.items()} == {"mod": 2, "scans": 3}
    assert all(a.run.pair == b.run.pair and a.run.arm == "baseline" for a, b in pairs["mod"])
    line = one(differences(runs, "baseline"), "mod")  # one pair in each fold
    changes = [b.mean("dice") - a.mean("dice") for a, b in pairs["mod"]]
    assert line.pairs == 2
    assert line.mean == pytest.approx(sum(changes) / 2)


def test_one_pair_has_no_t_interval(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"bundles": ["unetr_mod"], "labelled": [5], "folds": [0], "seeds": [1]}
    line = one(differences(read_study(make_study(tmp_path, **plan)).runs, "baseline"), "mod")
    assert line.pairs == 1
    assert all(math.isnan(value) for value in (line.t_low, line.t_high, line.p, line.p_holm))
    assert line.both_low < line.mean < line.both_high


def test_without_the_baseline_nothing_is_compared(runs: tuple[Finished, ...]) -> None:
    assert differences([run for run in runs if run.run.arm != "baseline"], "baseline") == []


def test_a_case_counts_where_both_runs_have_a_value(tmp_path: Path) -> None:
    def undefined(run: Run, content: dict[str, Any]) -> None:
        for region in ("tc", "wt", "et"):
            content["scores"]["case_0_0"][f"hd95_{region}"] = None if run.arm == "mod" else 1e6

    plan: dict[str, Any] = {"bundles": ["unetr_mod"], "labelled": [5], "folds": [0]}
    runs = read_study(make_study(tmp_path, undefined, **plan)).runs
    line = one(differences(runs, "baseline"), "mod", "hd95")
    total = 0.0
    for a, b in pairs_of(runs, "baseline")["mod"]:
        first, second = a.by_case("hd95"), b.by_case("hd95")
        total += sum(second[case] - first[case] for case in list(first)[1:]) / 3
    assert line.mean == pytest.approx(total / 2)
    assert abs(line.both_low) < 100 > abs(line.both_high)


def test_runs_that_share_no_case_are_refused(tmp_path: Path) -> None:
    def other(run: Run, content: dict[str, Any]) -> None:
        if run.arm == "mod":
            content["scores"] = {f"x{k}": row for k, row in content["scores"].items()}

    with pytest.raises(DataError, match="unetr_mod/mod/n5/fold0/seed1 have no held-out case"):
        differences(read_study(make_study(tmp_path, other)).runs, "baseline")


def test_equal_runs_do_not_differ() -> None:
    assert paired_test(np.zeros(3)) == (0, 0, 1)
    assert paired_test(np.full(4, 0.5)) == (0.5, 0.5, 0)
    assert all(math.isnan(value) for value in paired_test(np.ones(1)))


def test_of_two_pairs_with_equal_cases_a_quarter_of_draws_is_each_pair_alone() -> None:
    """Means of draws are 0, 0.5 and 1 with probabilities 1/4, 1/2, 1/4."""
    change = np.array([0.0, 1.0])[:, None, None] * np.ones((2, 7, 1))
    low, high = crossed_intervals({0: change})
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


def test_one_pair_gives_the_bootstrap_of_its_cases() -> None:
    cases = np.random.default_rng(1).normal(0.2, 1, 40)
    low, high = crossed_intervals({0: cases[None, :, None]})
    expected = stats.bootstrap(
        (cases,), np.mean, method="percentile", n_resamples=20_000, random_state=5
    ).confidence_interval
    assert low[0] == pytest.approx(expected.low, abs=0.02)
    assert high[0] == pytest.approx(expected.high, abs=0.02)


def test_cases_that_runs_share_are_not_averaged_away() -> None:
    """Runs without chance of their own, and cases with: more runs make nothing narrower."""
    cases = np.random.default_rng(2).normal(0, 1, 50)
    widths = []
    for pairs in (2, 30):
        low, high = crossed_intervals({0: np.tile(cases, (pairs, 1))[:, :, None]})
        widths.append(high[0] - low[0])
    assert widths[0] == pytest.approx(widths[1], rel=0.05)
    assert widths[0] == pytest.approx(2 * 1.96 * cases.std() / math.sqrt(50), rel=0.05)


def test_both_sources_of_variation_add_up() -> None:
    generator = np.random.default_rng(3)
    of_pairs, of_cases = generator.normal(0, 1, 60), generator.normal(0, 1, 80)
    low, high = crossed_intervals({0: (of_pairs[:, None] + of_cases)[:, :, None]})
    error = math.sqrt(of_pairs.var() / 60 + of_cases.var() / 80)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_each_fold_has_cases_of_its_own() -> None:
    """Ten folds of like cases: a fifth of one's variance, as their draws are independent."""
    cases = np.random.default_rng(4).normal(0, 1, 50)
    one_fold = np.tile(cases, (4, 1))[:, :, None]
    alone = np.subtract(*crossed_intervals({0: one_fold})[::-1])
    # folds are equal, so that drawing them adds nothing but their unequal shares
    many = dict.fromkeys(range(10), one_fold)
    together = np.subtract(*crossed_intervals(many)[::-1])
    shares = 1 / 10 + (1 - 1 / 10) / 10  # E[sum of share²] of ten folds, drawn ten times
    assert together[0] == pytest.approx(alone[0] * math.sqrt(shares), rel=0.06)


def test_the_crossed_bootstrap_is_the_one_that_loops_make() -> None:
    generator = np.random.default_rng(6)
    folds = {fold: generator.normal(0.1, 1, (3, size)) for fold, size in ((0, 5), (1, 9))}
    folds[1][2, 4] = np.nan
    means = []
    for _ in range(3000):
        drawn = {f: generator.integers(0, v.shape[1], v.shape[1]) for f, v in folds.items()}
        rows = {f: generator.integers(0, len(v), len(v)) for f, v in folds.items()}
        of_fold = {
            f: np.mean([np.nanmean(folds[f][row][drawn[f]]) for row in rows[f]]) for f in folds
        }
        means.append(np.mean([of_fold[f] for f in generator.integers(0, len(folds), len(folds))]))
    low, high = crossed_intervals({fold: v[:, :, None] for fold, v in folds.items()})
    expected = np.percentile(means, (2.5, 97.5))
    assert (low[0], high[0]) == pytest.approx(tuple(expected), abs=0.05)


def test_students_interval_holds_its_level_when_pairs_of_a_fold_are_alike() -> None:
    """Five folds of three seeds, as much variance between folds as within: the mean is 0."""
    generator = np.random.default_rng(8)
    inside = {"folds": 0, "pairs": 0}
    for _ in range(2000):
        values = generator.normal(0, 1, (5, 1)) + generator.normal(0, 1, (5, 3))
        units, number = independent({fold: row[:, None, None] for fold, row in enumerate(values)})
        assert number == 15
        for name, change in (("folds", units[:, 0]), ("pairs", values.ravel())):
            low, high, _ = paired_test(change)
            inside[name] += low <= 0 <= high
    assert inside["folds"] / 2000 == pytest.approx(0.95, abs=0.015)
    assert inside["pairs"] / 2000 < 0.88, "pairs of a fold are not independent"


def test_runs_that_trained_on_other_cases_are_refused(tmp_path: Path) -> None:
    def other(run: Run, content: dict[str, Any]) -> None:
        content["training_ids"] = ["a", "b" if run.arm == "baseline" else "c"]

    with pytest.raises(DataError, match="seed1 trained on other cases"):
        differences(read_study(make_study(tmp_path, other)).runs, "baseline")


def test_figures_are_resampled_together_and_stay_apart() -> None:
    change = np.random.default_rng(7).normal(0, 1, (3, 6, 1))
    both = np.concatenate([change, 10 * change, np.full_like(change, np.nan)], axis=2)
    low, high = crossed_intervals({0: both})
    alone = crossed_intervals({0: change})
    assert (low[0], high[0]) == pytest.approx((alone[0][0], alone[1][0]))
    assert low[1] == pytest.approx(10 * low[0])
    assert np.isnan([low[2], high[2]]).all()
