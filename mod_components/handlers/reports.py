"""Results of an evaluation as CSV and JSON files and a table in the log."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from mod_components.evaluation.results import note_text
from mod_components.evaluation.scores import score_case
from mod_components.evaluation.summary import summarise, table
from mod_components.files import save_json
from mod_components.handlers.cases import decollated, gather_by_case
from mod_components.handlers.tables import write_csv
from mod_components.metrics import REGIONS, spacing_of

logger = logging.getLogger("mod_components.evaluation")

Row = dict[str, Any]


class EvaluationReport:
    """Writes every case's scores, and their summary, when an evaluation is over.

    The scores are those of :data:`mod_components.evaluation.scores.METRICS`. Files in
    ``output_dir``: ``metrics_per_case.csv`` (a row a case), ``metrics_summary.csv`` (a row a
    region, and the mean of a case's regions, as
    :func:`mod_components.evaluation.summary.summarise` gives them) and ``summary.json`` (the same,
    and the notes). A score that is not defined is an empty cell, and null in JSON. A case that a
    distributed sampler has dealt out twice counts once.

    Needs ``case`` in ``engine.state.batch``, and binary ``pred`` and ``label`` (3, D, H, W) in
    ``engine.state.output``, each a list of dicts as MONAI's evaluators leave them. The voxel
    size is that of the label, else of the prediction, else 1 mm.

    Args:
        output_dir: folder to write into; it is made.
        notes: further lines for the log and ``summary.json``, such as the Dice of a threshold; nan
            becomes null.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        notes: Mapping[str, str | float | bool] | None = None,
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
        for case, item in decollated(engine, "EvaluationReport"):
            if "case" not in case:
                raise KeyError("EvaluationReport needs each case's id under 'case' in the batch.")
            row = _score(str(case["case"]), item["pred"], item["label"])
            self._rows.setdefault(row["case"], row)

    def _completed(self, engine: Engine) -> None:
        rows = list(gather_by_case(self._rows).values())
        if idist.get_rank() != 0:
            return
        if not rows:
            logger.warning("no case has been evaluated: nothing to report")
            return
        summary = summarise(rows)
        self._write([_without_nan(row) for row in rows], [_without_nan(row) for row in summary])
        lines = table(summary) + [f"{k}: {note_text(v)}" for k, v in self.notes.items()]
        logger.info(
            "%d cases evaluated, written to %s\n%s", len(rows), self.output_dir, "\n".join(lines)
        )

    def _write(self, rows: list[Row], summary: list[Row]) -> None:
        write_csv(self.output_dir / "metrics_per_case.csv", list(rows[0]), rows)
        write_csv(self.output_dir / "metrics_summary.csv", list(summary[0]), summary)
        content = {
            "cases": len(rows),
            "regions": {
                row["region"]: {k: v for k, v in row.items() if k != "region"} for row in summary
            },
            "notes": _without_nan(self.notes),
        }
        save_json(content, self.output_dir / "summary.json")


def _score(case: str, pred: torch.Tensor, label: torch.Tensor) -> Row:
    """A row of ``metrics_per_case.csv`` from masks (3, D, H, W)."""
    for name, mask in (("pred", pred), ("label", label)):
        if mask.ndim != 4 or mask.shape[0] != len(REGIONS):
            raise ValueError(
                f"{name} of {case} must be ({len(REGIONS)}, D, H, W), got {tuple(mask.shape)}."
            )
    return {"case": case, **score_case(pred, label, spacing_of(label, pred))}


def _without_nan(row: Mapping[str, Any]) -> Row:
    """None for nan and inf: an empty cell in CSV, and null in JSON, which knows neither."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
