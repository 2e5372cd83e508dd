"""How soon runs get somewhere, and what an update costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mod_components.study.results import Finished, Point, by_arm, grouped
from mod_components.study.statistics import Spread, pairs_of, spread

__all__ = ["LEVELS", "CatchUp", "Cost", "Level", "catch_ups", "costs", "first_at", "levels"]

LEVELS = tuple(round(0.05 * step, 2) for step in range(6, 19))
"""Levels of Dice, 0.3 to 0.9, that validation curves are asked for."""

_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class Level:
    """When an arm's runs reach a level of Dice on the held-out cases.

    Attributes:
        bundle: the bundle.
        labelled: number of labelled cases; 0 for all.
        arm: the arm.
        level: mean Dice, 0 to 1.
        runs: number of runs.
        reached: how many of them reach it.
        update: median, over all runs, of the first validation's update; a run that does not reach
            the level counts as infinitely late, so nan where half of them or more do not.
        hours: the same of hours of training.
    """

    bundle: str
    labelled: int
    arm: str
    level: float
    runs: int
    reached: int
    update: float
    hours: float


@dataclass(frozen=True)
class CatchUp:
    """At which share of the baseline's updates an arm is as far as the baseline's last weights.

    Attributes:
        bundle: the bundle.
        labelled: number of labelled cases; 0 for all.
        arm: the arm. The baseline stands beside the others, each run compared with itself: it may
            be as far before its end, too, as curves rise and fall.
        pairs: number of pairs.
        never: pairs in which the arm never gets there.
        share: median over all pairs; nan where half of them or more never get there.
        halfway: mean over the pairs of arm − baseline, in fractions of 1, at the last validation in
            the first half of each; nan where a run has none.
    """

    bundle: str
    labelled: int
    arm: str
    pairs: int
    never: int
    share: float
    halfway: float


@dataclass(frozen=True)
class Cost:
    """What an update costs.

    Attributes:
        bundle: the bundle.
        threads: threads of torch; runs of other numbers stand apart.
        arm: the arm.
        seconds: seconds of training an update, over runs.
        pairs: number of pairs with the baseline.
        ratio: mean over them of arm / baseline; nan without a pair.
    """

    bundle: str
    threads: int
    arm: str
    seconds: Spread
    pairs: int
    ratio: float


def first_at(curve: Iterable[Point], level: float) -> Point | None:
    """The first validation at which a curve has a level of Dice; None if it never does."""
    return next((point for point in curve if point.dice >= level), None)


def levels(runs: Sequence[Finished]) -> list[Level]:
    """When the runs of each arm reach each level of :data:`LEVELS`.

    Args:
        runs: the runs.

    Returns:
        By bundle and number of labelled cases, level and arm; levels that no run of any arm
        reaches there are left out.
    """
    found = []
    for (bundle, labelled), group in grouped(runs).items():
        for level in LEVELS:
            arms = {
                arm: [first_at(run.curve, level) for run in own]
                for arm, own in by_arm(group).items()
            }
            if any(point for points in arms.values() for point in points):
                found += [_level(bundle, labelled, arm, level, own) for arm, own in arms.items()]
    return found


def _level(
    bundle: str, labelled: int, arm: str, level: float, points: Sequence[Point | None]
) -> Level:
    return Level(
        bundle=bundle,
        labelled=labelled,
        arm=arm,
        level=level,
        runs=len(points),
        reached=sum(point is not None for point in points),
        update=_median([point.update if point else math.inf for point in points]),
        hours=_median([point.seconds if point else math.inf for point in points])
        / _SECONDS_AN_HOUR,
    )


def catch_ups(runs: Sequence[Finished], baseline: str) -> list[CatchUp]:
    """When each arm is as far as the baseline at the end of its curve, pair by pair.

    Args:
        runs: the runs.
        baseline: name of the arm that the others are compared with.

    Returns:
        By bundle and number of labelled cases, and arm, the baseline first.
    """
    found = []
    for (bundle, labelled), group in grouped(runs).items():
        own = [(run, run) for run in group if run.run.arm == baseline]
        for arm, pairs in {baseline: own, **pairs_of(group, baseline)}.items():
            shares = [_share(first, second) for first, second in pairs if first.curve]
            if shares:
                never = sum(math.isinf(share) for share in shares)
                ahead = [_at_half(second) - _at_half(first) for first, second in pairs]
                line = CatchUp(
                    bundle,
                    labelled,
                    arm,
                    pairs=len(shares),
                    never=never,
                    share=_median(shares),
                    halfway=float(np.mean(ahead)),
                )
                found.append(line)
    return found


def _share(baseline: Finished, other: Finished) -> float:
    point = first_at(other.curve, baseline.curve[-1].dice)
    return point.update / baseline.updates if point else math.inf


def _at_half(run: Finished) -> float:
    before = [point.dice for point in run.curve if 2 * point.update <= run.updates]
    return before[-1] if before else math.nan


def costs(runs: Sequence[Finished], baseline: str) -> list[Cost]:
    """Seconds of training an update, by arm.

    Args:
        runs: the runs.
        baseline: name of the arm that the others are compared with.

    Returns:
        By bundle, number of threads and arm, over all numbers of labelled cases, folds and seeds.
    """
    groups: dict[tuple[str, int], list[Finished]] = {}
    for run in runs:
        groups.setdefault((run.run.bundle, run.threads), []).append(run)
    found = []
    for (bundle, threads), group in groups.items():
        pairs = pairs_of(group, baseline)
        for arm, own in by_arm(group).items():
            ratios = [_cost(second) / _cost(first) for first, second in pairs.get(arm, [])]
            ratio = spread([1.0] if arm == baseline else ratios).mean
            seconds = spread([_cost(run) for run in own])
            found.append(Cost(bundle, threads, arm, seconds, len(ratios), ratio))
    return found


def _cost(run: Finished) -> float:
    return run.seconds / run.updates


def _median(values: Sequence[float]) -> float:
    """Median; nan where it is infinite."""
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else math.nan
