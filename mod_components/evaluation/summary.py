"""Summary of the scores of many cases: spread, median and confidence interval by region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from mod_components.data.records import REGIONS
from mod_components.evaluation.scores import METRICS

__all__ = ["bootstrap_intervals", "region_values", "summarise", "table"]

Row = dict[str, Any]

_STATISTICS = ("mean", "std", "median", "ci_low", "ci_high")
_SOMETIMES_UNDEFINED = ("sensitivity", "precision")
_RESAMPLES, _SEED = 9_999, 0
_BATCH_VALUES = 4_000_000  # numbers held at once while resampling, 32 MB
_SHOWN = (
    ("dice", "Dice", 4),
    ("hd95", "HD95 (mm)", 2),
    ("nsd", "NSD", 4),
    ("lesion_dice", "lesion-wise Dice", 4),
)  # key, heading, digits


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Mean, spread, median and confidence interval over cases, for each region and their mean.

    Args:
        rows: of at least one case each, values by ``<metric>_<region>`` as
            :func:`mod_components.evaluation.scores.score_case` gives them. Metrics that the first
            row does not have are left out.

    Returns:
        A row each for TC, WT, ET and ``mean`` (of a case's three regions): ``region``, ``n``, and
        for each metric ``<metric>_mean``, ``_std`` (of the cases at hand, divided by n),
        ``_median``, ``_ci_low`` and ``_ci_high`` (:func:`bootstrap_intervals` of the mean).
        Sensitivity and precision are over the cases in which they are defined (for ``mean``: in
        all three regions); ``<metric>_n`` says how many. Statistics of no case are nan.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("nothing to summarise: there is no case.")
    summary: list[Row] = [{"region": region, "n": len(rows)} for region in (*REGIONS, "mean")]
    keys = [m.key for m in METRICS if f"{m.key}_{REGIONS[0].lower()}" in rows[0]]
    values = np.stack([region_values(rows, key) for key in keys])  # (metrics, regions + 1, cases)
    low, high = bootstrap_intervals(values.reshape(-1, len(rows)))
    ends = np.stack([low, high], axis=-1).reshape(*values.shape[:2], 2)
    for key, of_metric, intervals in zip(keys, values, ends, strict=True):
        for line, of_region, interval in zip(summary, of_metric, intervals, strict=True):
            defined = of_region[~np.isnan(of_region)]
            if key in _SOMETIMES_UNDEFINED:
                line[f"{key}_n"] = len(defined)
            statistics = (math.nan,) * 3
            if len(defined):
                statistics = (defined.mean(), defined.std(), np.median(defined))
            for name, value in zip(_STATISTICS, (*statistics, *interval), strict=True):
                line[f"{key}_{name}"] = float(value)
    return summary


def region_values(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """A metric's values of every case in TC, WT and ET, and the mean of the three.

    Args:
        rows: values by ``<metric>_<region>`` of each case.
        key: the metric.

    Returns:
        (4, cases); the mean is nan where one of the three is.
    """
    values = np.array([[row[f"{key}_{r.lower()}"] for r in REGIONS] for row in rows], float).T
    return np.vstack([values, values.mean(axis=0)])


def bootstrap_intervals(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % confidence intervals of means, by resampling the cases.

    The percentile bootstrap of ``scipy.stats.bootstrap`` with 9,999 resamples and a fixed seed:
    the same values give the same interval. It says nothing from one case, whose interval is the
    case itself, and is too narrow for a handful (Efron & Tibshirani, 1993, ch. 13).

    Args:
        values: (rows, cases); nan where a case does not count.

    Returns:
        Lower and upper ends, both (rows,); nan for a row without a value.
    """
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    undefined = np.isnan(values)
    together = ~undefined.any(axis=1)
    groups = [(together, values[together])]
    groups += [
        (np.arange(len(values)) == row, values[row : row + 1, ~undefined[row]])
        for row in np.flatnonzero(~together)
    ]
    for rows, complete in groups:
        if complete.size:
            low[rows], high[rows] = _intervals_without_gaps(complete)
    return low, high


def _intervals_without_gaps(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intervals of (rows, cases) without nan."""
    if values.shape[1] == 1:
        return values[:, 0], values[:, 0]
    interval = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_VALUES // values.size),
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    ).confidence_interval
    return interval.low, interval.high


def table(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table to read: mean ± standard deviation and, for Dice, the interval.

    Args:
        summary: what :func:`summarise` gives; metrics that it does not have are left out.
    """
    shown = [column for column in _SHOWN if f"{column[0]}_mean" in summary[0]]
    lines = [[f"{'region':<6}"] + [title for _, title, _ in shown]]
    for row in summary:
        cells = [f"{row['region']:<6}"]
        for key, _, digits in shown:
            cell = f"{row[f'{key}_mean']:.{digits}f} ± {row[f'{key}_std']:.{digits}f}"
            if key == "dice":
                cell += f" [{row['dice_ci_low']:.4f}, {row['dice_ci_high']:.4f}]"
            cells.append(cell)
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) for line in lines]
