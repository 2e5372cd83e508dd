"""What a training takes over from the datalist that a run has written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_components.data.datalist import load_datalist
from mod_components.data.records import Layout
from mod_components.errors import DataError

__all__ = ["fold_to_repeat", "fold_to_resume", "refuse_another_split", "refuse_other_codes"]

logger = logging.getLogger("mod_components.data")


def refuse_another_split(content: Mapping[str, Any], written: Path, datalist: str) -> None:
    """Refuse a datalist whose split is not that of the run to resume.

    Args:
        content: the datalist that was given.
        written: the run's own.
        datalist: path of the former.

    Raises:
        DataError: if the two differ.
    """

    def split(of: Mapping[str, Any]) -> list[Any]:
        return [[(e["case"], e.get("fold")) for e in of[k]] for k in ("training", "validation")]

    if split(content) != split(load_datalist(written)):
        raise DataError(
            f"the run to resume has the split of {written}, and {datalist} is another one: leave "
            "out --datalist, or train anew without --resume."
        )


def refuse_other_codes(layout: Layout, content: Mapping[str, Any], path: Path) -> None:
    """Refuse label maps that are not read as the run to resume read them.

    Args:
        layout: of the folder now.
        content: the run's datalist.
        path: that file.

    Raises:
        DataError: if the codes differ.
    """
    if dict(content["codes"]) != dict(layout.codes):
        raise DataError(
            f"the run to resume read {content['codes']} as codes of the label maps ({path}), and "
            f"this one reads {dict(layout.codes)}: give the --dataset_dir and --legacy_et that it "
            "had, or train anew without --resume."
        )


def fold_to_repeat(fold: int, content: Mapping[str, Any], path: str) -> int:
    """The fold to hold out of a split that a run has written: its own unless another is given.

    Args:
        fold: what was given; -1 for nothing.
        content: the run's datalist.
        path: that file.
    """
    own = int(content.get("fold", -1))
    if fold != -1 or own == -1:
        return fold
    logger.info("holding out fold %d, as the run that wrote %s did (see --fold)", own, path)
    return own


def fold_to_resume(fold: int, content: Mapping[str, Any], path: Path) -> int:
    """The fold of the run to resume.

    Args:
        fold: what was given; -1 for nothing.
        content: the run's datalist.
        path: that file.

    Raises:
        DataError: if another one was given.
    """
    own = int(content.get("fold", -1))
    if fold not in (-1, own):
        raise DataError(
            f"the run to resume holds out fold {own} ({path}), not {fold}: leave out --fold, or "
            "train anew without --resume."
        )
    return own
