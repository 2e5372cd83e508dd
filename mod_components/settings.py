"""Reading of settings that may come from a command line."""

from __future__ import annotations

import glob
import inspect
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mod_components.errors import CheckpointError, SettingsError

__all__ = [
    "check_training_settings",
    "checkpoint_list",
    "flag",
    "listed_cases",
    "loads_weights",
    "network_record",
    "number",
    "trained_settings",
    "whole_number",
]

logger = logging.getLogger("mod_components.settings")


def flag(value: bool | int | str | None) -> bool:
    """Read a yes-or-no setting.

    ``--use_mod false`` reaches a config as the string ``"false"``, which Python counts as true.

    Args:
        value: a boolean, 0, 1, None, or "true", "false", "yes", "no", "on", "off", "1", "0".

    Raises:
        SettingsError: for anything else.
    """
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0", "none", ""):
        return False
    raise SettingsError(f"expected true or false, got {value!r}.")


def number(name: str, value: Any, least: float = 0) -> float:
    """Read a setting that is a finite number.

    Args:
        name: the setting, for the message.
        value: a number, or text that says one.
        least: the smallest that it may be.

    Raises:
        SettingsError: for anything else.
    """
    found = _float(value)
    if not least <= found < math.inf:
        raise SettingsError(f"{name} must be a number from {least:g}, got {value!r}.")
    return found


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """Read a setting that is a whole number; see :func:`number`."""
    found = _float(value)
    if not least <= found < math.inf or found != int(found):
        raise SettingsError(f"{name} must be a whole number from {least}, got {value!r}.")
    return int(found)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def checkpoint_list(checkpoint: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """Read a setting that names one checkpoint or several.

    Args:
        checkpoint: a path, a list of paths, paths with commas between them, or a pattern such as
            ``runs/fold_*/models/model.pt`` (its matches come in the order of their names).

    Returns:
        One path or more.

    Raises:
        CheckpointError: when a pattern matches nothing, or nothing is given.
    """
    if isinstance(checkpoint, (str, os.PathLike)):
        whole = os.path.expanduser(checkpoint)
        if os.path.isfile(whole):
            return [whole]
        parts = [part.strip() for part in os.fspath(checkpoint).split(",") if part.strip()]
    else:
        parts = [os.fspath(part) for part in checkpoint]
    paths: list[str] = []
    for part in map(os.path.expanduser, parts):
        pattern = glob.has_magic(part) and not os.path.isfile(part)
        found = sorted(glob.glob(part)) if pattern else [part]
        if not found:
            raise CheckpointError(f"no file matches {part}: train first, or correct --checkpoint.")
        paths += found
    if not paths:
        raise CheckpointError("no checkpoint is given: name one or more with --checkpoint.")
    return paths


def trained_settings(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of the run that wrote a checkpoint, so that what reads it needs none of them.

    Args:
        checkpoint: a ``model.pt``; its ``training.json`` lies beside it.

    Returns:
        The settings, or an empty dictionary, with a warning, where there is no ``training.json``.

    Raises:
        CheckpointError: when that file cannot be read.
    """
    path = Path(checkpoint).with_name("training.json")
    if not path.is_file():
        if Path(checkpoint).is_file():  # not all settings of a network show in its weights' shapes
            logger.warning(
                "no %s: the network is built with the settings of the config and the command line.",
                path,
            )
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): restore it, or remove it and give the network's "
            "settings on the command line."
        ) from error


def network_record(network: Any) -> dict[str, Any]:
    """The class and the arguments of ``network_def`` in the config that is being evaluated.

    For ``training.json``: any bundle can build the network of a checkpoint from it, with what was
    given on the command line too.

    Args:
        network: the network; asking for it makes sure that its arguments have their values.

    Returns:
        The class under ``target`` and the arguments by name; empty where one of them is not plain.
    """
    del network
    parser = _config()
    if parser is None:
        return {}
    keys = [key for key in parser["network_def"] if key == "_target_" or not key.startswith("_")]
    record = {key.strip("_"): parser.get_parsed_content(f"network_def#{key}") for key in keys}
    try:
        return dict(json.loads(json.dumps(record)))
    except TypeError:
        return {}


def listed_cases() -> dict[str, list[Any]] | None:
    """Cases that another program has written into the config that is being evaluated.

    MONAI Label puts lists in place of ``train#dataset#data`` and ``validate#dataset#data``.

    Returns:
        The lists under "training" and "validation", or None where the config is as it was.
    """
    parser = _config()
    if parser is None or not isinstance(parser["train#dataset#data"], list):
        return None
    validation = parser["validate#dataset#data"]
    return {
        "training": parser["train#dataset#data"],
        "validation": validation if isinstance(validation, list) else [],
    }


def loads_weights() -> bool:
    """Whether another program has added a loader of weights to the config's training handlers."""
    parser = _config()
    handlers = [] if parser is None else parser["train#handlers"]
    return any(handler.get("_target_") == "CheckpointLoader" for handler in handlers)


def _config() -> Any:
    """The ``ConfigParser`` that is evaluating the expression that called; None without one."""
    from monai.bundle import ConfigParser  # late: most that is here needs no MONAI

    owners = (frame.frame.f_locals.get("self") for frame in inspect.stack(0))
    return next((owner for owner in owners if isinstance(owner, ConfigParser)), None)


def check_training_settings(
    epochs: int, roi_size: Sequence[int], batch_size: int, multiple: int, smallest: int
) -> None:
    """Refuse settings that no training can start with.

    Args:
        epochs: number of epochs.
        roi_size: (D, H, W) of the training crops in voxels.
        batch_size: crops a step and process.
        multiple: what the network needs the sides of a crop to be multiples of.
        smallest: what its longest side must have at least: on less a network that normalizes over
            one voxel at its deepest level can't be trained.

    Raises:
        SettingsError: naming the setting and what it may be.
    """
    whole_number("epochs", epochs, 1)
    whole_number("batch_size", batch_size, 1)
    sides = list(roi_size) if isinstance(roi_size, Sequence) else []
    whole = len(sides) == 3 and all(isinstance(side, int) for side in sides)
    if not whole or any(s < multiple or s % multiple for s in sides) or max(sides) < smallest:
        raise SettingsError(
            f"roi_size must be three multiples of {multiple}, the largest at least {smallest}, "
            f"got {roi_size!r}."
        )
