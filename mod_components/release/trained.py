"""What a training left behind, as a packed bundle tells and holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from mod_components.errors import CheckpointError
from mod_components.handlers.checkpoint import check_fit
from mod_components.release.render import PACKAGE

__all__ = [
    "check_weights",
    "own_name",
    "packed_name",
    "read_training",
    "recorded_network",
    "trained_row",
]

_MONAIS, _OURS = "monai.networks.nets", f"{PACKAGE}.networks"
_VENDORED = re.compile(rf"^{PACKAGE}_\d\w*(?=\.)")


def own_name(target: str) -> str:
    """A class's name with this package's own in place of a packed bundle's copy of it."""
    return _VENDORED.sub(PACKAGE, target)


def packed_name(target: str, package: str) -> str:
    """A class's name with a packed bundle's copy of this package in place of its own."""
    if target.startswith(f"{PACKAGE}."):
        return package + target.removeprefix(PACKAGE)
    return target


def read_training(models: str | Path, name: str, command: str) -> dict[str, Any]:
    """``training.json`` of a training of one bundle.

    Args:
        models: the folder with ``model.pt`` and ``training.json``.
        name: the bundle's name, such as ``swinunetr_mod``.
        command: what to train the bundle with, for messages.

    Raises:
        CheckpointError: when one of the two is missing, is another bundle's, or does not hold
            what a training writes.
    """
    models = Path(models)
    path = models / "training.json"
    for file in (models / "model.pt", path):
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist: train first, with '{command}'.")
    try:
        training = dict(json.loads(path.read_text(encoding="utf-8")))
        training["settings"] = dict(training["settings"])
        found = training["settings"].get("bundle")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): train again.") from error
    if found != name:
        raise CheckpointError(
            f"{path} tells of a training of {found}, not of {name}: pack that bundle, or give the "
            "folder of another run."
        )
    if wrong := _wrong_types(training):
        raise CheckpointError(
            f"{path} does not hold what a training writes ({', '.join(wrong)}): restore the file "
            "of the training, or train again."
        )
    return training


def _wrong_types(training: Mapping[str, Any]) -> list[str]:
    """Entries of ``training.json`` that are there and are not of the type that is used of them."""
    settings, history = training["settings"], training.get("history", [])
    rows = history if isinstance(history, list) else [history]
    metrics, versions = training.get("metrics", {}), training.get("versions", {})
    size, network = settings.get("roi_size", [1, 1, 1]), settings.get("network", {})
    numbers = ("fold", "training_cases", "validation_cases", "unlabelled_cases", "epochs")
    right = {
        "metrics": isinstance(metrics, dict) and all(map(_is_number, metrics.values())),
        "versions": isinstance(versions, dict),
        "command": isinstance(training.get("command", []), list),
        "history": all(
            isinstance(row, dict) and isinstance(row.get("dataset_dir"), (str, type(None)))
            for row in rows
        ),
        "settings#roi_size": isinstance(size, list) and len(size) == 3 and all(map(_is_side, size)),
        "settings#network": isinstance(network, dict),
        **{
            f"settings#{key}": isinstance(settings.get(key, ""), str)
            for key in ("dataset_dir", "layout", "tap")
        },
        **{f"settings#{key}": isinstance(settings.get(key), (int, type(None))) for key in numbers},
    }
    return [name for name, is_right in right.items() if not is_right]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def trained_row(row: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A row of the table with the values that a training had in place of its own.

    Bundles rendered from it build the network that the weights fit, in configs that never read
    ``training.json`` too.

    Args:
        row: the backbone's row.
        settings: of ``training.json``.
        path: that file, for messages.

    Raises:
        CheckpointError: when the network is one that a packed bundle can't build, or a setting
            would be evaluated by MONAI.
    """
    taken = ("tap", "mask_cell", "roi_size", *row["network_settings"])
    for key in [key for key in taken if key in settings]:
        _refuse_expression(settings[key], f"the setting {key}", path)
    changed = {key: settings[key] for key in ("tap", "mask_cell") if key in settings}
    own = row["network_settings"]
    changed["network_settings"] = {key: settings.get(key, value) for key, value in own.items()}
    crop = list(settings.get("roi_size", row["roi_size"]))
    changed |= {"roi_size": crop, "sample_roi_size": crop}
    if all(isinstance(side, int) for side in row["spatial_shape"]):  # a network of one input size
        changed["spatial_shape"] = crop
    if changed.get("tap", row["tap"]) != row["tap"]:
        changed["tap_text"] = f"output of the module `{changed['tap']}`"
    if settings.get("network"):
        record = _plain_record(settings["network"], path)
        values = {**changed["network_settings"], "roi_size": crop}
        if record != _filled(row["network_def"], values):
            target = record.pop("target")
            changed["network_def"] = {"_target_": target, **record}
    return {**row, **changed}


def recorded_network(row: Mapping[str, Any]) -> dict[str, Any]:
    """Class and arguments of a row's network, as a training notes them in ``training.json``.

    Args:
        row: from :func:`trained_row`.
    """
    return _filled(row["network_def"], {**row["network_settings"], "roi_size": row["roi_size"]})


def check_weights(row: Mapping[str, Any], path: Path) -> int:
    """Check that ``model.pt`` holds a flat ``state_dict`` that fits a row's network strictly.

    Args:
        row: from :func:`trained_row`.
        path: the weights; read as tensors alone, never unpickled.

    Returns:
        Number of the network's parameters.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, each a file that can't be used
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({first}): restore the file of the training, "
            "or train again."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(
            f"{path} is not a flat state_dict: save network.state_dict() itself, as training does."
        )
    network = _build(row, path)
    check_fit(network, weights, path)
    return sum(parameter.numel() for parameter in network.parameters())


def _plain_record(network: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The record of a network, refused if it names code of others or could be evaluated."""
    record = {**network, "target": own_name(str(network.get("target", "")))}
    if not _is_network(record["target"]):
        raise CheckpointError(
            f"{path}: the network is a {record['target']}, and a packed bundle brings MONAI's and "
            "this project's networks alone: train one of these."
        )
    _refuse_expression(record, "an argument of the network", path)
    return record


def _is_network(target: str) -> bool:
    """Whether it names a network's class; MONAI finds Python's own functions by bare names too."""
    module, _, name = target.rpartition(".")
    if module not in ("", _MONAIS, _OURS):
        return False
    found = getattr(import_module(module or _MONAIS), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _refuse_expression(value: Any, what: str, path: Path) -> None:
    if _is_evaluated(value):
        raise CheckpointError(
            f"{path}: {what} is an expression, which configs would run: restore the file of the "
            "training, or train again."
        )


def _is_evaluated(value: Any) -> bool:
    """Whether a config would do more with a value than hold it."""
    if isinstance(value, Mapping):
        return any(
            str(key).startswith("_") or _is_evaluated(key) or _is_evaluated(item)
            for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return any(map(_is_evaluated, value))
    # inside an expression that quotes it, "@" is a reference anywhere
    return isinstance(value, str) and bool(re.search(r"[$@%]", value))


def _filled(network_def: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``network_record`` notes of a row's network with these settings."""
    record = {key.strip("_"): value for key, value in network_def.items()}
    for key, value in record.items():
        if isinstance(value, str) and value.startswith("@"):
            record[key] = values[value[1:]]
    return record


def _build(row: Mapping[str, Any], path: Path) -> nn.Module:
    config = {
        **row["network_settings"],
        "roi_size": row["roi_size"],
        "network_def": row["network_def"],
    }
    try:
        network = ConfigParser(config).get_parsed_content("network_def")
        if not isinstance(network, nn.Module):
            raise TypeError(f"{type(network).__name__} is no network")
    except Exception as error:  # of many kinds: the settings do not make a network
        cause = error.__cause__ or error
        raise CheckpointError(
            f"{path.with_name('training.json')}: the network that it tells of can't be built "
            f"({cause}): restore the file of the training, or train again."
        ) from error
    return network
