"""The picture of a training's curves that a packed bundle's card shows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_components.errors import DataError
from mod_components.evaluation.curves import plot_curves, read_curves
from mod_components.release.card import CURVES

__all__ = ["training_curves"]

_DICE = "mean Dice on the validation cases"
_PNG = b"\x89PNG\r\n\x1a\n"


def training_curves(run: Path, training: Mapping[str, Any], name: str) -> bytes:
    """Draw the curves of the training that wrote a checkpoint.

    Args:
        run: the training's folder (``bundle_root``), with ``eval/`` beside ``models/``; or a packed
            bundle, whose picture is taken over.
        training: content of its ``training.json``.
        name: what the legend calls it.

    Returns:
        A PNG, the same for the same tables; empty where they are missing or of another training.
    """
    drawn = run / "docs" / CURVES
    if training.get("curves") and drawn.is_file():
        content = drawn.read_bytes()
        return content if content.startswith(_PNG) else b""
    if not _of_this_training(run / "eval", training):
        return b""
    with tempfile.TemporaryDirectory(prefix="curves-") as folder:
        path = Path(folder) / CURVES
        plot_curves({name: run / "eval"}, path)
        return path.read_bytes()


def _of_this_training(folder: Path, training: Mapping[str, Any]) -> bool:
    """Whether the tables tell of the checkpoint's epoch what its record tells."""
    try:
        curves = read_curves(folder)
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return False
    epoch, dice = training.get("epoch"), training.get("metrics", {}).get("val_mean_dice")
    trained = {at for at, _ in curves.get("segmentation loss", [])}
    validated = dict(curves.get(_DICE, []))
    if epoch not in trained or epoch not in validated or dice is None:
        return False
    return math.isclose(validated[epoch], dice, rel_tol=1e-4, abs_tol=1e-5)
