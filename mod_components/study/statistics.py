"""Spread of runs, and differences between arms by pairs of runs, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mod_components.errors import DataError
from mod_components.evaluation.compare import holm
from mod_components.study.results import Finished, by_arm, grouped, known_mean

__all__ = [
    "COMPARED",
    "Difference",
    "Spread",
    "crossed_intervals",
    "differences",
    "independent",
    "paired_test",
    "pairs_of",
    "spread",
]

COMPARED = ("dice", "dice_tc", "dice_wt", "dice_et", "hd95")
"""Figures whose differences are reported, each a family of its own for Holm's method."""

_RESAMPLES, _SEED = 10_000, 0
_ENDS = (2.5, 97.5)  # percent

Pair = tuple[Finished, Finished]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Values of several runs.

    Attributes:
        n: number of runs in which the value is defined.
        mean: their mean; nan without one.
        sd: their standard deviation, divided by n − 1; nan with fewer than two.
    """

    n: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Difference:
    """How an arm differs from the baseline, in one figure, over pairs of runs.

    A pair are two runs of one bundle, number of labelled cases, fold and seed. Its difference is
    the mean, over the held-out cases in which both runs' figure is defined, of arm − baseline.
    Pairs of one fold share their held-out cases and most of their training cases, so where there
    are several folds, the mean of a fold is what Student's interval and test count as one.

    Attributes:
        bundle: the bundle.
        labelled: number of labelled cases; 0 for all.
        arm: the arm.
        metric: one of :data:`COMPARED`; Dice in fractions of 1, HD95 in mm.
        pairs: number of pairs.
        counted: number of folds, or of pairs where there is one fold.
        cases: number of different held-out cases in them.
        mean: mean over folds of the mean of their pairs' differences.
        t_low: lower end of Student's 95 % interval of the mean. It answers: where would the mean
            lie with other folds, or, of one fold, with other seeds on its held-out cases? nan with
            one pair.
        t_high: its upper end.
        p: of the paired t test, two-sided; nan with one pair, 1 where nothing differs at all.
        p_holm: ``p`` adjusted by Holm's method for the number of arms that are compared with the
            baseline in this bundle, number of labelled cases and figure.
        both_low: lower end of the 95 % interval of :func:`crossed_intervals`. It answers: where
            would the mean lie with other seeds, folds and cases? With one pair it knows of other
            cases alone.
        both_high: its upper end.
    """

    bundle: str
    labelled: int
    arm: str
    metric: str
    pairs: int
    counted: int
    cases: int
    mean: float
    t_low: float
    t_high: float
    p: float
    p_holm: float
    both_low: float
    both_high: float


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of what is not nan."""
    known = np.array([value for value in values if not math.isnan(value)])
    mean = float(known.mean()) if known.size else math.nan
    sd = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return Spread(known.size, mean, sd)


def pairs_of(runs: Sequence[Finished], baseline: str) -> dict[str, list[Pair]]:
    """Runs of each other arm beside the baseline's run that they may be compared with.

    Args:
        runs: the runs.
        baseline: name of the arm that stands first in each pair.

    Returns:
        Pairs by arm, in the order of the runs; arms without a pair are left out.
    """
    arms = by_arm(runs)
    partners = {found.run.pair: found for found in arms.pop(baseline, [])}
    pairs = {
        arm: [(partners[found.run.pair], found) for found in own if found.run.pair in partners]
        for arm, own in arms.items()
    }
    return {arm: found for arm, found in pairs.items() if found}


def differences(runs: Sequence[Finished], baseline: str) -> list[Difference]:
    """Differences of every arm from the baseline.

    Args:
        runs: the runs, probes or none of them.
        baseline: name of the arm that the others are compared with.

    Returns:
        By bundle and number of labelled cases, arm and figure of :data:`COMPARED`.

    Raises:
        DataError: if two runs of a pair were evaluated on no case in common, or trained on other
            labelled cases.
    """
    found: list[Difference] = []
    for (bundle, labelled), group in grouped(runs).items():
        arms = pairs_of(group, baseline).items()
        lines = [line for arm, pairs in arms for line in _compare(bundle, labelled, arm, pairs)]
        for metric in COMPARED:
            family = [index for index, line in enumerate(lines) if line.metric == metric]
            adjusted = holm([lines[index].p for index in family])
            for index, p in zip(family, adjusted, strict=True):
                lines[index] = replace(lines[index], p_holm=p)
        found += lines
    return found


def _compare(bundle: str, labelled: int, arm: str, pairs: Sequence[Pair]) -> list[Difference]:
    folds = _changes(pairs)
    units, pairs_in = independent(folds)
    low, high = crossed_intervals(folds)
    lines = []
    for index, metric in enumerate(COMPARED):
        change = units[~np.isnan(units[:, index]), index]
        t_low, t_high, p = paired_test(change)
        line = Difference(
            bundle=bundle,
            labelled=labelled,
            arm=arm,
            metric=metric,
            pairs=int(pairs_in[index]),
            counted=change.size,
            cases=len({case for _, run in pairs for case in run.scores}),
            mean=float(known_mean(change, axis=0)),
            t_low=t_low,
            t_high=t_high,
            p=p,
            p_holm=math.nan,  # known when all arms are
            both_low=float(low[index]),
            both_high=float(high[index]),
        )
        lines.append(line)
    return lines


def _changes(pairs: Sequence[Pair]) -> dict[int, Array]:
    """Arm − baseline by fold, (pairs, cases, figures); nan for a case that a pair lacks."""
    folds: dict[int, list[Pair]] = {}
    for pair in pairs:
        folds.setdefault(pair[0].run.fold, []).append(pair)
    changes = {}
    for fold, own in folds.items():
        cases = sorted({case for pair in own for run in pair for case in run.scores})
        values = np.full((len(own), len(cases), len(COMPARED)), np.nan)
        for index, (first, second) in enumerate(own):
            where = f"{first.run.folder.as_posix()} and {second.run.folder.as_posix()}"
            if not first.scores.keys() & second.scores.keys():
                raise DataError(f"{where} have no held-out case in common: were folds changed?")
            known = first.training_ids and second.training_ids
            if known and first.training_ids != second.training_ids:
                raise DataError(f"{where} trained on other cases: was the data set changed?")
            for column, metric in enumerate(COMPARED):
                a, b = first.by_case(metric), second.by_case(metric)
                row = [b.get(case, math.nan) - a.get(case, math.nan) for case in cases]
                values[index, :, column] = row
        changes[fold] = values
    return changes


def independent(changes: Mapping[int, Array]) -> tuple[Array, Array]:
    """What may be counted as independent: means of folds, or of one fold its pairs.

    Args:
        changes: differences of each fold, (pairs, cases, figures); nan where a case does not count.

    Returns:
        Differences, (folds or pairs, figures), nan where there is none, and the number of pairs
        with a value, (figures,).
    """
    of_pairs = [known_mean(change, axis=1) for change in changes.values()]
    number = sum((~np.isnan(own)).sum(axis=0) for own in of_pairs)
    if len(of_pairs) == 1:
        return of_pairs[0], np.asarray(number)
    return np.stack([known_mean(own, axis=0) for own in of_pairs]), np.asarray(number)


def paired_test(change: Array) -> tuple[float, float, float]:
    """Student's 95 % interval of the mean difference, and the paired t test.

    Args:
        change: differences, of each pair or the mean of each fold, without nan.

    Returns:
        Lower end, upper end and two-sided p. With fewer than two all three are nan: a single one
        does not tell how much they differ.
    """
    n = len(change)
    if n < 2:
        return math.nan, math.nan, math.nan
    mean, error = float(change.mean()), float(change.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, n - 1))


def crossed_intervals(changes: Mapping[int, Array]) -> tuple[Array, Array]:
    """95 % intervals of mean differences when both runs and cases might have been others.

    A bootstrap of 10,000 resamples with a fixed seed: each draws folds with replacement and, within
    each fold, pairs of runs and, independently, cases. All seeds of a fold are evaluated on the
    same cases, so a drawn case counts in all of the fold's runs; that its difficulty is common to
    them is not averaged away, as it would be if every score were a draw of its own. The ends are
    percentiles of the means over drawn folds of their means over drawn pairs and cases. Resampling
    crossed factors is a little too wide for many pairs and cases (Owen, Ann. Appl. Stat. 1, 2007)
    and too narrow for a handful; one pair, or one case, is drawn again and again, and its own
    variation is then not in the interval.

    Args:
        changes: differences of each fold, (pairs, cases, figures); nan where a case does not count.

    Returns:
        Lower and upper ends, both (figures,); nan for a figure without a value.
    """
    generator = np.random.default_rng(_SEED)
    of_folds = []
    for change in changes.values():
        means = _means_over_drawn_cases(change, generator)  # (resamples, pairs, figures)
        of_folds.append(_mean_of_drawn(means, generator))
    resampled = np.stack(of_folds, axis=1)  # (resamples, folds, figures)
    resampled = _mean_of_drawn(resampled, generator)  # (resamples, figures)
    ends = np.full((2, resampled.shape[1]), np.nan)
    for figure, values in enumerate(resampled.T):
        known = values[~np.isnan(values)]
        if known.size:
            ends[:, figure] = np.percentile(known, _ENDS)
    return ends[0], ends[1]


def _mean_of_drawn(values: Array, generator: np.random.Generator) -> Array:
    """Means over draws with replacement: (resamples, n, figures) to (resamples, figures)."""
    weights = _draws(values.shape[1], generator)[:, :, None] * ~np.isnan(values)
    totals = (weights * np.nan_to_num(values)).sum(axis=1)
    counts = weights.sum(axis=1)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def _means_over_drawn_cases(change: Array, generator: np.random.Generator) -> Array:
    """(resamples, pairs, figures) of one fold: its pairs' means over the cases drawn."""
    pairs, cases, figures = change.shape
    weights = _draws(cases, generator)
    by_case = change.transpose(1, 0, 2).reshape(cases, -1)  # (cases, pairs x figures)
    known = ~np.isnan(by_case)
    counts = weights @ known.astype(float)
    totals = weights @ np.where(known, by_case, 0.0)
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return means.reshape(-1, pairs, figures)


def _draws(number: int, generator: np.random.Generator) -> Array:
    """How often each of ``number`` things is drawn with replacement, (resamples, number)."""
    counts = generator.multinomial(number, np.full(number, 1 / number), size=_RESAMPLES)
    return counts.astype(np.float64)
