"""Two evaluations of the same cases, compared pair by pair."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from mod_components.data.records import REGIONS
from mod_components.errors import DataError
from mod_components.evaluation.results import PER_CASE, read_table
from mod_components.evaluation.scores import METRICS
from mod_components.evaluation.summary import bootstrap_intervals, region_values

__all__ = ["Comparison", "Difference", "compare", "holm", "read_scores"]

COMPARED = ("dice", "hd95", "nsd", "lesion_dice")

_TITLES = {metric.key: metric.title for metric in METRICS}
# Files have 6 digits: what differs beyond the ninth decimal is rounding, and would break ties.
_DECIMALS = 9
# True volumes that are closer are the same: voxel sizes may come from headers of 32-bit floats.
_SAME_RELATIVE, _SAME_ML = 1e-4, 1e-6
_EXAMPLES = 3


@dataclass(frozen=True)
class Difference:
    """How one metric of one region differs between two evaluations.

    Attributes:
        metric: key of the metric.
        region: TC, WT, ET or "mean" (of a case's three regions).
        n: number of pairs.
        mean_a: mean over the pairs' first values.
        mean_b: mean over their second values.
        difference: mean of B − A.
        ci_low: lower end of the 95 % bootstrap interval of the mean of B − A, pairs resampled.
        ci_high: its upper end.
        p: of Wilcoxon's signed-rank test, two-sided; 1 where no pair differs, nan without a pair.
        p_holm: ``p`` adjusted by Holm's method over the metric's regions that have one; nan for
            "mean".
    """

    metric: str
    region: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` finds.

    Attributes:
        a: the first evaluation's file.
        b: the second one's.
        cases: ids of the cases in both.
        only_a: ids of the cases that only the first one has.
        only_b: ids of the cases that only the second one has.
        differences: metric by metric, TC, WT, ET and "mean".
    """

    a: str
    b: str
    cases: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    differences: tuple[Difference, ...]

    def as_rows(self) -> list[dict[str, Any]]:
        """A dict for each difference, for a CSV file or JSON; None where a value is nan."""
        return [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in asdict(difference).items()
            }
            for difference in self.differences
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain values, ready for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "cases": list(self.cases),
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "differences": self.as_rows(),
        }

    def table(self) -> list[str]:
        """Lines of a table to read."""
        lines = [f"A: {self.a}", f"B: {self.b}", f"{len(self.cases)} cases in both"]
        for name, only in (("A", self.only_a), ("B", self.only_b)):
            if only:
                lines[-1] += f", {len(only)} only in {name}"
        header = f"{'metric':<20}  {'region':<6} {'n':>5} {'A':>9} {'B':>9} {'B − A':>9}"
        lines.append(f"{header}  {'95 % interval':>20} {'p':>7} {'Holm':>7}")
        for d in self.differences:
            digits = 2 if d.metric == "hd95" else 4
            interval = f"[{d.ci_low:+.{digits}f}, {d.ci_high:+.{digits}f}]"
            means = f"{d.mean_a:>9.{digits}f} {d.mean_b:>9.{digits}f} {d.difference:>+9.{digits}f}"
            line = f"{_TITLES[d.metric]:<20.20}  {d.region:<6} {d.n:>5} {means}"
            lines.append(
                f"{line}  {interval:>20} {_show_p(d.p):>7} {_show_p(d.p_holm):>7}".rstrip()
            )
        return lines


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Compare two evaluations on the cases that both have, by Dice, HD95, NSD, lesion-wise Dice.

    Args:
        a: folder that ``EvaluationReport`` has written, or its ``metrics_per_case.csv``.
        b: the other one; differences are B − A.

    Returns:
        A row for each metric that both files have and each of TC, WT, ET and their mean.

    Raises:
        DataError: if a file is missing or not such a table, the two have no case or no metric in
            common, or the true volumes of a case differ.
    """
    path_a, path_b = _file(a), _file(b)
    scores_a, scores_b = read_scores(path_a), read_scores(path_b)
    cases = sorted(scores_a.keys() & scores_b.keys())
    if not cases:
        raise DataError(
            f"no case is in both {path_a} ({len(scores_a)} cases) and {path_b} ({len(scores_b)} "
            "cases): compare evaluations of the same data."
        )
    _refuse_other_truths(path_a, path_b, {case: (scores_a[case], scores_b[case]) for case in cases})
    rows_a, rows_b = [scores_a[case] for case in cases], [scores_b[case] for case in cases]
    metrics = [key for key in COMPARED if _has(rows_a[0], key) and _has(rows_b[0], key)]
    if not metrics:
        raise DataError(f"{path_a} and {path_b} share no metric: evaluate again to write both.")
    differences = [d for key in metrics for d in _differences(key, rows_a, rows_b)]
    return Comparison(
        a=str(path_a),
        b=str(path_b),
        cases=tuple(cases),
        only_a=tuple(sorted(scores_a.keys() - scores_b.keys())),
        only_b=tuple(sorted(scores_b.keys() - scores_a.keys())),
        differences=tuple(differences),
    )


def read_scores(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Every case's scores from a ``metrics_per_case.csv``.

    Args:
        path: the file, or the folder that has it.

    Returns:
        Values by column, by case; an empty cell is nan.

    Raises:
        DataError: as of :func:`mod_components.evaluation.results.read_table`.
    """
    return read_table(_file(path), "case")


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / PER_CASE if Path(path).is_dir() else Path(path)


def _has(row: dict[str, float], key: str) -> bool:
    return all(f"{key}_{region.lower()}" in row for region in REGIONS)


def _refuse_other_truths(
    a: Path, b: Path, pairs: Mapping[str, tuple[dict[str, float], dict[str, float]]]
) -> None:
    """Scores against different label maps say nothing about which prediction is better.

    Raises:
        DataError: if a case's true volume of a region is not the same in both files.
    """
    found: dict[str, str] = {}
    for case, (one, other) in pairs.items():
        for region in REGIONS:
            column = f"volume_truth_{region.lower()}"
            volumes = one.get(column, math.nan), other.get(column, math.nan)
            known = not any(map(math.isnan, volumes))
            if known and not math.isclose(*volumes, rel_tol=_SAME_RELATIVE, abs_tol=_SAME_ML):
                found.setdefault(case, f"{case}: {region} {volumes[0]:g} and {volumes[1]:g} mL")
    if found:
        examples = "; ".join(list(found.values())[:_EXAMPLES])
        examples += "; …" if len(found) > _EXAMPLES else ""
        raise DataError(
            f"{a} and {b} do not have the same truth: the true volumes of {len(found)} of "
            f"{len(pairs)} cases differ ({examples}). Evaluate both again with the same label maps "
            "and the same legacy_et."
        )


def _differences(
    key: str, rows_a: Sequence[dict[str, float]], rows_b: Sequence[dict[str, float]]
) -> list[Difference]:
    """One metric's differences in TC, WT, ET and their mean."""
    a, b = region_values(rows_a, key), region_values(rows_b, key)  # (4, cases)
    change = np.round(b - a, _DECIMALS)
    lows, highs = bootstrap_intervals(change)
    p = [_signed_rank(row[~np.isnan(row)]) for row in change]
    adjusted = [*holm(p[: len(REGIONS)]), math.nan]
    lines = []
    for i, region in enumerate((*REGIONS, "mean")):
        pairs = ~np.isnan(change[i])
        line = Difference(
            metric=key,
            region=region,
            n=int(pairs.sum()),
            mean_a=_mean(a[i][pairs]),
            mean_b=_mean(b[i][pairs]),
            difference=_mean(change[i][pairs]),
            ci_low=float(lows[i]),
            ci_high=float(highs[i]),
            p=p[i],
            p_holm=adjusted[i],
        )
        lines.append(line)
    return lines


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _signed_rank(change: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired differences without nan.

    Those of 0 do not count, as the test has it. Left to scipy, they also make it take the normal
    approximation where few others are left, which then finds too much.
    """
    unequal = change[change != 0]
    if not unequal.size:
        return 1.0 if change.size else math.nan
    return float(wilcoxon(unequal).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method (Scand. J. Statist. 6, 1979).

    Those that are nan were not tested: they stay nan and do not count among the tests.
    """
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _show_p(p: float) -> str:
    if math.isnan(p):
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
