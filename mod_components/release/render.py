"""Renders the bundles from one template and one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mod_components.errors import SettingsError

__all__ = ["backbones", "render", "render_bundle"]

BUNDLE_ROOT = (
    # the configs' folder of the workflow that evaluates this, wherever it was started; MONAI's
    # own "." is the current directory
    "$next((str(pathlib.Path(w.config_root_path).resolve().parent) for w in "
    "(f.frame.f_locals.get('self') for f in inspect.stack(0)) "
    "if 'config_root_path' in getattr(w, '__dict__', {})), '.')"
)
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
    return table


def render_bundle(name: str, table: Mapping[str, dict[str, Any]] | None = None) -> dict[str, str]:
    """Render one bundle.

    Args:
        name: short name of a backbone, such as ``"swinunetr"``.
        table: rows by short name; the package's own by default.

    Returns:
        File contents by path inside the bundle.

    Raises:
        SettingsError: when the table has no such backbone.
    """
    table = backbones() if table is None else table
    if name not in table:
        raise SettingsError(f"no backbone {name!r} in the table; it has {', '.join(table)}.")
    values = _values(name, table[name])
    files = {"LICENSE": _source("templates/LICENSE")}
    for config in CONFIGS:
        path = f"configs/{config}.json"
        filled = _fill(json.loads(_source(f"templates/{path}")), values)
        files[path] = json.dumps(filled, indent=4, ensure_ascii=False) + "\n"
    for path in TEXTS:
        files[path] = _fill_text(_source(f"templates/{path}"), values)
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
            if not target.is_file() or target.read_text(encoding="utf-8") != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="utf-8")
                changed.append(target)
    return changed


def _values(name: str, row: dict[str, Any]) -> dict[str, Any]:
    settings = row["network_settings"]
    release = json.loads(_source("release.json"))
    return {
        **row,
        **release,
        "references": [*row["references"], release["method_reference"]],
        "name": f"{name}_mod",
        "bundle_root": BUNDLE_ROOT,
        # what reads a checkpoint takes the network's settings from the run that wrote it
        "trained_network_settings": {
            key: f"$@trained.get('{key}', {value!r})" for key, value in settings.items()
        },
        "network_references": {key: f"@{key}" for key in settings},
        "ensemble": json.loads(_source("templates/ensemble.json")),
        **_texts(row),
    }


def _texts(row: dict[str, Any]) -> dict[str, str]:
    """Words of the model card that follow from a row."""
    target = row["network_def"]["_target_"]
    package, _, bare = target.rpartition(".")
    package = package.partition(".")[0] or "monai"  # MONAI finds its own classes by bare names
    monai = package == "monai"
    crop, sample_crop = (" x ".join(map(str, row[key])) for key in ("roi_size", "sample_roi_size"))
    on_sample = "on the sample too" if crop == sample_crop else f"{sample_crop} on the sample"
    return {
        "network_text": f"MONAI's own `monai.networks.nets.{bare}`" if monai else f"`{target}`",
        "install_text": "It runs where this project is not installed."
        if monai
        else f"`{package}` must be installed where it is loaded.",
        "crop_text": f"{crop} voxels ({on_sample})",
        "export_shape": str([1, 4, *row["sample_roi_size"]]),
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
