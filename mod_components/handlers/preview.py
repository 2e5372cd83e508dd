"""A picture of one validation case after each validation: truth and prediction in three planes."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from mod_components.evaluation.pictures import draw_case, picture_bytes
from mod_components.files import write_atomically
from mod_components.handlers.cases import decollated

__all__ = ["Preview"]

logger = logging.getLogger("mod_components.preview")


class Preview:
    """Draws validation cases into ``<output_dir>/previews/epoch_0003.png``.

    Axial, coronal and sagittal planes through the tumour on FLAIR and T1ce, with true outlines
    solid and predicted ones dashed, as
    :func:`~mod_components.evaluation.pictures.draw_case` draws them: volumes are taken to be LPS.

    Needs ``image`` (4, D, H, W) and binary ``pred`` and ``label`` (3, D, H, W) in
    ``engine.state.output``, and ``case`` in ``engine.state.batch`` (the title; without it, the
    place in the validation set), each a list of dicts as MONAI's evaluators leave them. With
    several processes only the first one's cases are drawn.

    Args:
        output_dir: folder in which ``previews`` is made.
        case: id of the case to draw; ``None`` for the first ones.
        max_cases: how many to draw where ``case`` is ``None``. More than one carry the case's
            id in their file names.

    Raises:
        ValueError: if ``max_cases`` is less than 1.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        case: str | None = None,
        max_cases: int = 1,
    ) -> None:
        if max_cases < 1:
            raise ValueError(f"max_cases must be at least 1, got {max_cases}.")
        self.folder = Path(output_dir) / "previews"
        self.case = case
        self.max_cases = 1 if case is not None else max_cases
        self._drawn: set[str] = set()
        self._seen = 0

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: a MONAI evaluator with ``decollate=True``.
        """
        if importlib.util.find_spec("matplotlib") is None:
            logger.warning("no previews are drawn: matplotlib is not installed.")
            return
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _started(self, engine: Engine) -> None:
        self._drawn, self._seen = set(), 0

    def _iteration_completed(self, engine: Engine) -> None:
        if len(self._drawn) >= self.max_cases or idist.get_rank() != 0:
            return
        for data, item in decollated(engine, "Preview"):
            self._seen += 1
            case = str(data.get("case", f"case {self._seen}"))
            wanted = self.case in (None, case) and case not in self._drawn
            if wanted and len(self._drawn) < self.max_cases:
                self._drawn.add(case)
                self._draw(engine.state.epoch, case, item)

    def _draw(self, epoch: int, case: str, item: Mapping[str, Any]) -> None:
        name = f"epoch_{epoch:04d}"
        if self.max_cases > 1:
            name += "_" + re.sub(r"[^\w.-]", "_", case)
        figure = draw_case(
            item["image"], item["pred"], item["label"], title=f"{case}   ·   epoch {epoch}"
        )
        write_atomically(
            self.folder / f"{name}.png",
            lambda file: file.write(picture_bytes(figure)),
        )
