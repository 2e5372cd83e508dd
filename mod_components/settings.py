"""Reading of settings that may come from a command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mod_components.errors import CheckpointError

__all__ = ["flag", "trained_settings"]


def flag(value: bool | int | str | None) -> bool:
    """Read a yes-or-no setting.

    ``--use_mod false`` reaches a config as the string ``"false"``, which Python counts as true.

    Args:
        value: a boolean, 0, 1, None, or "true", "false", "yes", "no", "on", "off", "1", "0".

    Raises:
        ValueError: for anything else.
    """
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0", "none", ""):
        return False
    raise ValueError(f"expected true or false, got {value!r}.")


def trained_settings(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of the run that wrote a checkpoint, so that what reads it needs none of them.

    Args:
        checkpoint: a ``model.pt``; its ``training.json`` lies beside it.

    Returns:
        The settings, or an empty dictionary where there is no ``training.json``.

    Raises:
        CheckpointError: when that file cannot be read.
    """
    path = Path(checkpoint).with_name("training.json")
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): restore it, or remove it and give the network's "
            "settings on the command line."
        ) from error
