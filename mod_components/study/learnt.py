"""What MOD's losses learnt in a study's trainings, by the figures that they log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mod_components.study.results import Finished, by_arm, count_name, grouped, network_name
from mod_components.study.statistics import Spread, spread
from mod_components.study.tables import Row, Table, show

__all__ = ["learnt_table"]

_WARM = 0.2  # share of the training after which a median of epochs begins


@dataclass(frozen=True)
class _Figure:
    """A figure of a run.

    Attributes:
        column: of the run's log.
        heading: what a reader calls it.
        of: which epochs make it one number.
        scale: from the log's unit to the table's.
        digits: behind the point.
    """

    column: str
    heading: str
    of: Callable[[Sequence[float]], float]
    scale: float = 1.0
    digits: int = 2


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values[int(_WARM * len(values)) :]))


def _last(values: Sequence[float]) -> float:
    return values[-1]


_FIGURES = (
    _Figure("token_information", "token teacher tells (nats)", _middle),
    _Figure("class_information", "class teacher tells (nats)", _middle),
    _Figure("class_marginal_entropy", "class teacher, least spread (nats)", min),
    _Figure("loss_class", "class loss at the end (nats)", _last),
    _Figure("recon_gain", "predictor's gain at the end (%)", _last, 100, 0),
)


def learnt_table(runs: Sequence[Finished]) -> Table | None:
    """What the tokenizer's teacher told apart, and what the Dense Predictor explained.

    Args:
        runs: the runs.

    Returns:
        By network, number of labelled cases and arm: mean and range over runs; None where no run
        has such figures.
    """
    cells, rows = [], []
    for (bundle, labelled), group in grouped(runs).items():
        for arm, own in by_arm(group).items():
            found = {figure.column: _over_runs(own, figure) for figure in _FIGURES}
            if all(value.n == 0 for value, _ in found.values()):
                continue
            where = [network_name(bundle), count_name(labelled), arm]
            texts = [_text(*found[figure.column], figure.digits) for figure in _FIGURES]
            cells.append([*where, str(len(own)), *texts])
            row: Row = {"network": where[0], "labelled": labelled, "arm": arm, "runs": len(own)}
            for name, (value, (low, high)) in found.items():
                row |= {name: value.mean, f"{name}_least": low, f"{name}_most": high}
            rows.append(row)
    if not rows:
        return None
    note = (
        "Mean over runs (least to most). What a teacher tells is the mutual information of its "
        "answer and what it is asked about, out of the logarithm of the number of prototypes: 0 "
        "nats if it says the same of all; the median of the recorded epochs after the first "
        f"{_WARM:.0%} of the training. Least spread: the lowest entropy of its answers taken "
        "together, 0 when all got one and the same prototype. The predictor's gain is what it "
        "explains more than a constant would. Records keep about twenty epochs of a training."
    )
    header = ["network", "labelled", "arm", "runs", *(figure.heading for figure in _FIGURES)]
    return Table("learnt", "What MOD's losses learnt", note, header, cells, rows)


def _over_runs(runs: Sequence[Finished], figure: _Figure) -> tuple[Spread, tuple[float, float]]:
    values = []
    for run in runs:
        known = [row[figure.column] for row in run.losses if figure.column in row]
        known = [value for value in known if not math.isnan(value)]
        if known:
            values.append(figure.scale * figure.of(known))
    return spread(values), (min(values, default=math.nan), max(values, default=math.nan))


def _text(value: Spread, ends: tuple[float, float], digits: int) -> str:
    if value.n < 2:
        return show(value.mean, digits)
    return f"{show(value.mean, digits)} ({show(ends[0], digits)} to {show(ends[1], digits)})"
