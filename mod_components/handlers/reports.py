"""Results of an evaluation as CSV and JSON files and a table in the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events

from mod_components.files import save_json
from mod_components.handlers.tables import write_csv
from mod_components.metrics import REGIONS, dice, hd95, spacing_of

logger = logging.getLogger("mod_components.evaluation")

_METRICS = ("dice", "hd95")
_STATISTICS = ("mean", "std", "median")

Row = dict[str, Any]


class EvaluationReport:
    """Writes every case's Dice and HD95 (mm), and their summary, when an evaluation is over.

    Files in ``output_dir``: ``metrics_per_case.csv`` (a row a case), ``metrics_summary.csv``
    (a row a region, and the mean of a case's regions) and ``summary.json`` (the same, and the
    notes). A case that a distributed sampler has dealt out twice counts once. The standard
    deviation is that of the cases at hand (divided by n).

    Needs ``case`` in ``engine.state.batch``, and binary ``pred`` and ``label`` (3, D, H, W) in
    ``engine.state.output``, each a list of dicts as MONAI's evaluators leave them. The voxel
    size is that of the label, else of the prediction, else 1 mm.

    Args:
        output_dir: folder to write into; it is made.
        notes: further lines for the log and ``summary.json``, such as the Dice of a threshold.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        notes: Mapping[str, str | float] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.notes = dict(notes or {})
        self._rows: dict[str, Row] = {}

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: a MONAI evaluator with ``decollate=True``.
        """
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._rows = {}

    def _iteration_completed(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list):
            raise TypeError("EvaluationReport needs an evaluator with decollate=True.")
        for case, item in zip(batch, output, strict=True):
            if "case" not in case:
                raise KeyError("EvaluationReport needs each case's id under 'case' in the batch.")
            row = _score(str(case["case"]), item["pred"], item["label"])
            self._rows.setdefault(row["case"], row)

    def _completed(self, engine: Engine) -> None:
        rows = _gather(self._rows)
        if idist.get_rank() != 0:
            return
        if not rows:
            logger.warning("no case has been evaluated: nothing to report")
            return
        summary = summarise(rows)
        self._write(rows, summary)
        table = "\n".join(_table(summary) + [f"{k}: {_short(v)}" for k, v in self.notes.items()])
        logger.info("%d cases evaluated, written to %s\n%s", len(rows), self.output_dir, table)

    def _write(self, rows: list[Row], summary: list[Row]) -> None:
        write_csv(self.output_dir / "metrics_per_case.csv", list(rows[0]), rows)
        write_csv(self.output_dir / "metrics_summary.csv", list(summary[0]), summary)
        content = {
            "cases": len(rows),
            "regions": {
                row["region"]: {k: v for k, v in row.items() if k != "region"} for row in summary
            },
            "notes": self.notes,
        }
        save_json(content, self.output_dir / "summary.json")


def _score(case: str, pred: torch.Tensor, label: torch.Tensor) -> Row:
    """A row of ``metrics_per_case.csv`` from masks (3, D, H, W)."""
    for name, mask in (("pred", pred), ("label", label)):
        if mask.ndim != 4 or mask.shape[0] != len(REGIONS):
            raise ValueError(
                f"{name} of {case} must be ({len(REGIONS)}, D, H, W), got {tuple(mask.shape)}."
            )
    row: Row = {"case": case}
    scores = {"dice": dice(pred, label), "hd95": hd95(pred, label, spacing_of(label, pred))}
    for metric in _METRICS:
        for region, value in zip(REGIONS, scores[metric].tolist(), strict=True):
            row[f"{metric}_{region.lower()}"] = value
    return row


def _gather(rows: dict[str, Row]) -> list[Row]:
    """The rows of all processes by case, each case once."""
    everyone: list[Any] = [rows]
    if idist.get_world_size() > 1:
        everyone = [None] * idist.get_world_size()
        torch.distributed.all_gather_object(everyone, rows)
    merged: dict[str, Row] = {}
    for part in everyone:
        merged = {**part, **merged}
    return [merged[case] for case in sorted(merged)]


def summarise(rows: list[Row]) -> list[Row]:
    """Number, mean, standard deviation and median over cases, for each region and their mean.

    Args:
        rows: ``case`` and ``dice_tc`` … ``hd95_et`` of at least one case.

    Returns:
        A row each for TC, WT, ET and ``mean`` (of a case's three regions): ``region``, ``n``,
        ``dice_mean``, ``dice_std``, ``dice_median`` and the same for ``hd95`` in mm.
    """
    summary: list[Row] = [{"region": region, "n": len(rows)} for region in (*REGIONS, "mean")]
    for metric in _METRICS:
        values = np.array([[row[f"{metric}_{r.lower()}"] for r in REGIONS] for row in rows])
        values = np.hstack([values, values.mean(1, keepdims=True)])  # (cases, regions + 1)
        for statistic in _STATISTICS:
            for line, value in zip(summary, getattr(np, statistic)(values, axis=0), strict=True):
                line[f"{metric}_{statistic}"] = float(value)
    return summary


def _table(summary: list[Row]) -> list[str]:
    """Lines of a table to read: mean ± standard deviation, and median."""
    lines = [f"{'region':<6}  {'Dice':>15} {'median':>7}  {'HD95 (mm)':>17} {'median':>7}"]
    for row in summary:
        dices = f"{row['dice_mean']:.4f} ± {row['dice_std']:.4f}"
        distances = f"{row['hd95_mean']:.2f} ± {row['hd95_std']:.2f}"
        lines.append(
            f"{row['region']:<6}  {dices:>15} {row['dice_median']:>7.4f}"
            f"  {distances:>17} {row['hd95_median']:>7.2f}"
        )
    return lines


def _short(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
