"""Summaries against NumPy, against a plain bootstrap loop, and of cases without a score."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from mod_components.evaluation.scores import METRICS
from mod_components.evaluation.summary import bootstrap_intervals, summarise, table

REGIONS = ("tc", "wt", "et")
NAN = float("nan")


def rows(count: int, seed: int = 1) -> list[dict]:
    rng = np.random.default_rng(seed)
    columns = [f"{metric.key}_{region}" for metric in METRICS for region in REGIONS]
    return [
        {"case": f"case_{i}", **dict(zip(columns, rng.random(len(columns)), strict=True))}
        for i in range(count)
    ]


def test_statistics_are_numpys() -> None:
    cases = rows(7)
    summary = summarise(cases)
    assert [row["region"] for row in summary] == ["TC", "WT", "ET", "mean"]
    assert [row["n"] for row in summary] == [7] * 4
    for metric in METRICS:
        columns = [
            np.array([case[f"{metric.key}_{region}"] for case in cases]) for region in REGIONS
        ]
        columns.append(np.mean(columns, axis=0))
        for row, values in zip(summary, columns, strict=True):
            got = [row[f"{metric.key}_{s}"] for s in ("mean", "std", "median")]
            assert got == pytest.approx([values.mean(), values.std(), np.median(values)])
            assert row[f"{metric.key}_ci_low"] < values.mean() < row[f"{metric.key}_ci_high"]
    assert list(summary[0])[:8] == [
        *("region", "n", "dice_mean", "dice_std", "dice_median", "dice_ci_low", "dice_ci_high"),
        "hd95_mean",
    ]


def test_the_interval_is_that_of_resampled_means() -> None:
    rng = np.random.default_rng(4)
    values = np.stack([rng.normal(0.8, 0.1, 60), rng.exponential(5, 60)])
    low, high = bootstrap_intervals(values)
    for row, ends in zip(values, zip(low, high, strict=True), strict=True):
        means = [rng.choice(row, row.size).mean() for _ in range(20_000)]
        spread = row.std() / row.size**0.5
        assert ends == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.06 * spread)
        # Near enough to normal for the textbook's interval.
        normal = row.mean() + 1.96 * spread * np.array([-1, 1])
        assert ends == pytest.approx(normal, abs=0.25 * spread)
    again = bootstrap_intervals(values)
    assert np.array_equal(again, (low, high))


def test_one_case_is_its_own_interval() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(rows(1))
    for row in summary:
        assert row["dice_std"] == 0
        assert row["dice_ci_low"] == row["dice_ci_high"] == row["dice_mean"]


def test_equal_cases_have_no_width() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(rows(1) * 5)
    assert summary[1]["nsd_ci_low"] == pytest.approx(summary[1]["nsd_ci_high"])


def test_undefined_scores_are_left_out_and_counted() -> None:
    cases = rows(5)
    cases[0]["sensitivity_et"] = cases[3]["sensitivity_et"] = NAN
    for case in cases:
        case["precision_tc"] = NAN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tumour_core, whole, enhancing, mean = summarise(cases)
    assert enhancing["n"] == 5
    assert [row["sensitivity_n"] for row in (tumour_core, whole, enhancing, mean)] == [5, 5, 3, 3]
    kept = [cases[i] for i in (1, 2, 4)]
    values = np.array([case["sensitivity_et"] for case in kept])
    assert enhancing["sensitivity_mean"] == pytest.approx(values.mean())
    alone = bootstrap_intervals(values[None])
    assert (enhancing["sensitivity_ci_low"], enhancing["sensitivity_ci_high"]) == alone
    of_three = [np.mean([case[f"sensitivity_{region}"] for region in REGIONS]) for case in kept]
    assert mean["sensitivity_mean"] == pytest.approx(np.mean(of_three))
    assert tumour_core["precision_n"] == mean["precision_n"] == 0
    assert math.isnan(tumour_core["precision_mean"])
    assert math.isnan(tumour_core["precision_ci_low"])
    assert "dice_n" not in enhancing


def test_a_table_to_read() -> None:
    summary = summarise(rows(4))
    lines = table(summary)
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 5
    for title in ("Dice", "HD95 (mm)", "NSD", "lesion-wise Dice"):
        assert title in lines[0]
    mean = summary[3]
    assert lines[4].split()[0] == "mean"
    assert f"{mean['dice_mean']:.4f} ± {mean['dice_std']:.4f}" in lines[4]
    assert f"[{mean['dice_ci_low']:.4f}, {mean['dice_ci_high']:.4f}]" in lines[4]
    assert f"{mean['lesion_dice_mean']:.4f}" in lines[4]


def test_older_tables_have_fewer_metrics() -> None:
    old = [{key: v for key, v in row.items() if key[:4] in ("case", "dice")} for row in rows(3)]
    summary = summarise(old)
    assert set(summary[0]) == {"region", "n"} | {
        f"dice_{s}" for s in ("mean", "std", "median", "ci_low", "ci_high")
    }
    assert "HD95" not in table(summary)[0]
    with pytest.raises(ValueError, match="no case"):
        summarise([])
