"""Renders the bundles from one template and one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mod_components import __version__
from mod_components.errors import SettingsError
from mod_components.release.card import PACKAGE, card_values, metadata_values
from mod_components.release.unpack import is_plain_name

__all__ = ["PACKAGE", "backbones", "render", "render_bundle"]

BUNDLE_ROOT = (
    # the configs' folder of the workflow that evaluates this, wherever it was started; MONAI's
    # own "." is the current directory
    "$next((str(pathlib.Path(w.config_root_path).resolve().parent) for w in "
    "(f.frame.f_locals.get('self') for f in inspect.stack(0)) "
    "if 'config_root_path' in getattr(w, '__dict__', {})), '.')"
)
ON_PATH = (  # a bundle's own package, wherever the bundle is used from
    "$[sys.path.append(folder) for folder in (str(@bundle_root), "
    + BUNDLE_ROOT.removeprefix("$")
    + ") if folder not in sys.path and os.path.isdir(os.path.join(folder, '{package}'))]"
).replace("{}", "{{}}")
MONAI_NETS = "monai.networks.nets."
CONFIGS = ("train", "baseline", "multi_gpu_train", "evaluate", "inference", "metadata")
TEXTS = ("configs/logging.conf", "docs/README.md", "docs/data_license.txt")
ROW = [
    "title",
    "network_def",
    "network_settings",
    "references",
    "parameters",
    "test_settings",
    "tap",
    "tap_layer_norm",
    "tap_text",
    "mask_cell",
    "roi_size",
    "sample_roi_size",
    "sample_epochs",
    "spatial_shape",
    "size_multiple",
    "smallest_size",
]


def backbones(path: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """The table of backbones: what differs between the bundles, by short name.

    Args:
        path: a JSON file with rows of your own; the package's table by default.

    Raises:
        SettingsError: when the file cannot be read, or a row lacks something.
    """
    source = path or "backbones.json"
    try:
        text = Path(path).read_text(encoding="utf-8") if path else _source("backbones.json")
        table = {str(name): dict(row) for name, row in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(f"{source} is no table of backbones: {error}") from error
    for name, row in table.items():
        if missing := [key for key in ROW if key not in row]:
            raise SettingsError(f"{source}: the row {name!r} lacks {', '.join(missing)}.")
        _refuse_what_can_not_be_packed(f"{source}: the row {name!r}", name, row)
    return table


def _refuse_what_can_not_be_packed(where: str, name: str, row: Mapping[str, Any]) -> None:
    """Now, before anything is trained with it."""
    if not is_plain_name(name):
        raise SettingsError(
            f"{where} must be named by letters, digits, _ and - alone and without '_v', behind "
            "which a zip has its version."
        )
    if not isinstance(row["network_def"], Mapping):
        raise SettingsError(f"{where} has a network_def that is no object with a _target_.")
    target = str(row["network_def"].get("_target_", ""))
    module, _, network = target.removeprefix(MONAI_NETS).rpartition(".")
    if module and target.startswith(MONAI_NETS):
        raise SettingsError(f"{where} has the network {target}: write {MONAI_NETS}{network}.")


def render_bundle(
    name: str,
    table: Mapping[str, dict[str, Any]] | None = None,
    *,
    package: str = PACKAGE,
    values: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Render one bundle.

    Args:
        name: short name of a backbone, such as ``"swinunetr"``.
        table: rows by short name; the package's own by default.
        package: the package that the configs name. Another one than ours is looked for in the
            bundle's own folder: a packed bundle brings its code along.
        values: words and values in place of the renderer's own, by placeholder.

    Returns:
        File contents by path inside the bundle.

    Raises:
        SettingsError: when the table has no such backbone.
    """
    table = backbones() if table is None else table
    if name not in table:
        raise SettingsError(f"no backbone {name!r} in the table; it has {', '.join(table)}.")
    filling = {**_values(name, table[name], package), **(values or {})}
    files = {"LICENSE": _source("templates/LICENSE")}
    for config in CONFIGS:
        path = f"configs/{config}.json"
        filled = _fill(json.loads(_source(f"templates/{path}")), filling)
        filled = _with_package(filled, package)
        files[path] = json.dumps(filled, indent=4, ensure_ascii=False) + "\n"
    for path in TEXTS:
        files[path] = _fill_text(_source(f"templates/{path}"), filling)
    return files


def render(
    folder: str | Path,
    names: Sequence[str] | None = None,
    table: Mapping[str, dict[str, Any]] | None = None,
) -> list[Path]:
    """Write bundles below a folder, replacing the rendered files alone.

    Args:
        folder: the repository's ``bundles`` folder.
        names: short names of backbones; all of the table by default.
        table: rows by short name; the package's own by default.

    Returns:
        The files that changed.

    Raises:
        SettingsError: as :func:`render_bundle`.
    """
    table = backbones() if table is None else table
    changed = []
    for name in names or list(table):
        for path, content in render_bundle(name, table).items():
            target = Path(folder) / f"{name}_mod" / path
            # bytes, as packing compares them: a text file on Windows has other line ends
            new = content.encode()
            if not target.is_file() or target.read_bytes() != new:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(new)
                changed.append(target)
    return changed


def _values(name: str, row: dict[str, Any], package: str) -> dict[str, Any]:
    settings = row["network_settings"]
    release = json.loads(_source("release.json"))
    finder, own = "$importlib.import_module", package == PACKAGE
    # MONAI takes an expression with both "import" and "@" for an import statement: hence two ids
    module = finder if own else "$lambda name: (@on_path, @finder(name))[1]"
    return {
        **row,
        **release,
        "version": __version__,
        "references": [*row["references"], release["method_reference"]],
        "name": f"{name}_mod",
        "bundle_root": BUNDLE_ROOT,
        # what reads a checkpoint takes the network's settings from the run that wrote it
        "trained_network_settings": {
            key: f"$@trained.get('{key}', {value!r})" for key, value in settings.items()
        },
        "network_references": {key: f"@{key}" for key in settings},
        "ensemble": {**json.loads(_source("templates/ensemble.json")), "module": module},
        "code": {"module": module, "code": f"$lambda name: @module('{package}.' + name)"},
        "on_path": {} if own else {"on_path": ON_PATH.format(package=package), "finder": finder},
        **metadata_values(None, row),
        **card_values(None, row),
        "export_shape": str([1, 4, *row["sample_roi_size"]]),
        "export_text": row.get("export_text", "Not tried with this network."),
    }


def _fill(node: Any, values: dict[str, Any]) -> Any:
    """Fill placeholders; a key that starts with "..." splices the dictionary it names."""
    if isinstance(node, dict):
        filled: dict[str, Any] = {}
        for key, value in node.items():
            if key.startswith("..."):
                filled |= _fill(value, values)
            else:
                filled[key] = _fill(value, values)
        return filled
    if isinstance(node, list):
        return [_fill(item, values) for item in node]
    if isinstance(node, str):
        whole = re.fullmatch(r"<([a-z_]+)>", node)
        return _value(whole[1], values) if whole else _fill_text(node, values)
    return node


def _with_package(node: Any, package: str) -> Any:
    """Name another package than ours, which each of its components looks for on the path."""
    if package == PACKAGE:
        return node
    if isinstance(node, list):
        return [_with_package(item, package) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {}
    for key, value in node.items():
        changed[key] = _with_package(value, package)
        if key == "_target_" and str(value).startswith(f"{PACKAGE}."):
            changed[key] = package + value.removeprefix(PACKAGE)
            changed["_requires_"] = "@on_path"
    return changed


def _fill_text(text: str, values: dict[str, Any]) -> str:
    return re.sub(r"<([a-z_]+)>", lambda match: _as_text(_value(match[1], values)), text)


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(f"{number}. {item}" for number, item in enumerate(value, 1))
    return value if isinstance(value, str) else json.dumps(value)


def _value(key: str, values: dict[str, Any]) -> Any:
    if key not in values:
        raise ValueError(f"a template names <{key}>, which neither the table nor the renderer has.")
    return values[key]


def _source(path: str) -> str:
    return resources.files("mod_components.release").joinpath(path).read_text(encoding="utf-8")
