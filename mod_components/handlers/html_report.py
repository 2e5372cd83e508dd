"""The HTML report of an evaluation, with pictures of its worst cases."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from mod_components.evaluation.html import TITLE, write_html
from mod_components.evaluation.pictures import draw_case, picture_bytes, to_lps
from mod_components.handlers.cases import decollated, gather_by_case
from mod_components.metrics import dice

__all__ = ["HTMLReport"]

logger = logging.getLogger("mod_components.evaluation")

_DPI = 100

# a case's mean Dice and its picture
Drawn = tuple[float, bytes]


class HTMLReport:
    """Writes ``report.html`` when an evaluation is over; it stands behind ``EvaluationReport``.

    While the evaluation runs it keeps pictures of the worst cases by mean Dice over the regions:
    a case is drawn only if it is among the worst so far, and the one it displaces is dropped.

    Needs ``case`` in ``engine.state.batch``, and ``image`` (4, D, H, W) and binary ``pred`` and
    ``label`` (3, D, H, W) in ``engine.state.output``, each a list of dicts as MONAI's evaluators
    leave them. Each of the three is turned to LPS by its own affine, where it has one, so that
    they may be stored in different orientations.

    Args:
        output_dir: the folder that ``EvaluationReport`` writes into.
        pictures: how many cases to draw at most; 0 for none.
        title: the report's heading.

    Raises:
        ValueError: if ``pictures`` is negative.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], pictures: int = 12, title: str = TITLE
    ) -> None:
        if pictures < 0:
            raise ValueError(f"pictures must not be negative, got {pictures}.")
        self.output_dir = Path(output_dir)
        self.pictures = pictures
        self.title = title
        self._worst: dict[str, Drawn] = {}
        self._scores: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: a MONAI evaluator with ``decollate=True``.
        """
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._worst, self._scores = {}, {}

    def _iteration_completed(self, engine: Engine) -> None:
        for data, item in decollated(engine, "HTMLReport"):
            if "case" not in data:
                raise KeyError("HTMLReport needs each case's id under 'case' in the batch.")
            self._consider(str(data["case"]), item)

    def _consider(self, case: str, item: Mapping[str, Any]) -> None:
        """Draw a case if it is among the worst so far."""
        score = float(dice(item["pred"], item["label"]).mean())
        if case in self._scores:  # a sampler has dealt it out twice
            return
        self._scores[case] = score
        if not self.pictures:
            return
        if len(self._worst) == self.pictures:
            best = max(self._worst, key=lambda name: (self._worst[name][0], name))
            if (score, case) > (self._worst[best][0], best):
                return
            del self._worst[best]
        image, pred, label = (to_lps(item[key]) for key in ("image", "pred", "label"))
        figure = draw_case(image, pred, label, title=case)
        self._worst[case] = (score, picture_bytes(figure, "jpeg", _DPI))

    def _completed(self, engine: Engine) -> None:
        seen, drawn = gather_by_case(self._scores), gather_by_case(self._worst)
        self._worst = {}
        if idist.get_rank() != 0 or not seen:
            return  # without a case EvaluationReport has said so
        worst = sorted(drawn, key=lambda case: (drawn[case][0], case))[: self.pictures]
        path = write_html(self.output_dir, {case: drawn[case][1] for case in worst}, self.title)
        logger.info("report with %d pictures of the worst cases: %s", len(worst), path)
