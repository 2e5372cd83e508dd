"""What a training left behind, as a packed bundle tells and holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from mod_components.errors import CheckpointError
from mod_components.handlers.checkpoint import check_fit
from mod_components.release.render import PACKAGE

__all__ = [
    "check_weights",
    "cleaned",
    "read_training",
    "recorded_network",
    "trained_row",
    "without_case_ids",
    "without_paths",
]

_NETWORKS = re.compile(rf"(monai\.networks\.nets\.)?\w+|{PACKAGE}\.networks\.\w+")
_VENDORED = re.compile(rf"^{PACKAGE}_\d\w*(?=\.)")
# where one part of a command-line argument ends and another may begin
_PARTS = re.compile(r"""(['",=()\[\]{};]|\s+(?=[/\\~]|[A-Za-z]:[/\\]|file:))""")
_ABSOLUTE = re.compile(r"\s*(file:|[/\\~]|[A-Za-z]:[/\\])")


def read_training(models: str | Path, name: str, command: str) -> dict[str, Any]:
    """``training.json`` of a training of one bundle.

    Args:
        models: the folder with ``model.pt`` and ``training.json``.
        name: the bundle's name, such as ``swinunetr_mod``.
        command: what to train the bundle with, for messages.

    Raises:
        CheckpointError: when one of the two is missing, or is another bundle's.
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
    return training


def trained_row(row: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A row of the table with the values that a training had in place of its own.

    Bundles rendered from it build the network that the weights fit, in configs that never read
    ``training.json`` too.

    Args:
        row: the backbone's row.
        settings: of ``training.json``.
        path: that file, for messages.

    Raises:
        CheckpointError: when the network is one that a packed bundle can't build.
    """
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


def cleaned(training: Mapping[str, Any], package: str) -> dict[str, Any]:
    """``training.json`` as a packed bundle holds it.

    Args:
        training: its content.
        package: the name of this package's copy in the bundle.

    Returns:
        The same without paths of the machine, and with the network's class under its new name.
    """
    content = {**training}
    command = [str(word) for word in content.get("command", [])]
    if command and (_ABSOLUTE.match(command[0]) or command[0].endswith(".py")):
        content["command"] = command[1:]  # the first is the interpreter's script
    content = dict(without_paths(content))
    network = content["settings"].get("network")
    if network:
        target = _VENDORED.sub(PACKAGE, network["target"])
        if target.startswith(f"{PACKAGE}."):
            target = package + target.removeprefix(PACKAGE)
        content["settings"]["network"] = {**network, "target": target}
    return content


def without_paths(node: Any) -> Any:
    """JSON content in which the last part stands for each absolute path."""
    if isinstance(node, Mapping):
        return {key: without_paths(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [without_paths(item) for item in node]
    if not isinstance(node, str):
        return node
    if _ABSOLUTE.match(node) and not re.search(r"""['",]""", node):
        return _last_part(node)  # a path with spaces, perhaps
    return "".join(_last_part(part) for part in _PARTS.split(node))


def without_case_ids(postprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """``postprocessing.json`` with the number of the cases that it was chosen on, not their ids."""
    chosen = {
        which: {**found, "cases": [], "number_of_cases": len(found.get("cases", []))}
        for which, found in postprocessing.get("chosen_on", {}).items()
    }
    return {**postprocessing, "chosen_on": chosen}


def _last_part(text: str) -> str:
    if not _ABSOLUTE.match(text):
        return text
    windows = "\\" in text
    return (PureWindowsPath(text) if windows else PurePosixPath(text)).name


def _plain_record(network: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The record of a network, refused if it names code of others or could be evaluated."""
    record = {**network, "target": _VENDORED.sub(PACKAGE, str(network.get("target", "")))}
    if not _NETWORKS.fullmatch(record["target"]):
        raise CheckpointError(
            f"{path}: the network is a {record['target']}, and a packed bundle brings MONAI's and "
            "this project's networks alone: train one of these."
        )
    if re.search(r'"[$@%]', json.dumps(record)):
        raise CheckpointError(f"{path}: an argument of the network is an expression: train again.")
    return record


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
