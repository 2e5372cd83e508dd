"""Renders the bundles from one template and one table."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

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


def backbones() -> dict[str, dict[str, Any]]:
    """The table of backbones: what differs between the bundles, by short name."""
    return json.loads(_source("backbones.json"))


def render_bundle(name: str) -> dict[str, str]:
    """Render one bundle.

    Args:
        name: short name of a backbone, such as ``"swinunetr"``.

    Returns:
        File contents by path inside the bundle.

    Raises:
        ValueError: when the table has no such backbone, or a template a placeholder it lacks.
    """
    table = backbones()
    if name not in table:
        raise ValueError(f"no backbone {name!r} in the table; it has {', '.join(table)}.")
    values = _values(name, table[name])
    files = {"LICENSE": _source("templates/LICENSE")}
    for config in CONFIGS:
        path = f"configs/{config}.json"
        filled = _fill(json.loads(_source(f"templates/{path}")), values)
        files[path] = json.dumps(filled, indent=4, ensure_ascii=False) + "\n"
    for path in TEXTS:
        files[path] = _fill_text(_source(f"templates/{path}"), values)
    return files


def render(folder: str | Path, names: list[str] | None = None) -> list[Path]:
    """Write bundles below a folder, replacing the rendered files alone.

    Args:
        folder: the repository's ``bundles`` folder.
        names: short names of backbones; all by default.

    Returns:
        The files that changed.
    """
    changed = []
    for name in names or list(backbones()):
        for path, content in render_bundle(name).items():
            target = Path(folder) / f"{name}_mod" / path
            if not target.is_file() or target.read_text(encoding="utf-8") != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="utf-8")
                changed.append(target)
    return changed


def _values(name: str, row: dict[str, Any]) -> dict[str, Any]:
    settings = row["network_settings"]
    return {
        **row,
        **json.loads(_source("release.json")),
        "name": f"{name}_mod",
        "bundle_root": BUNDLE_ROOT,
        # what reads a checkpoint takes the network's settings from the run that wrote it
        "trained_network_settings": {
            key: f"$@trained.get('{key}', {value!r})" for key, value in settings.items()
        },
        "network_references": {key: f"@{key}" for key in settings},
    }


def _fill(node: Any, values: dict[str, Any]) -> Any:
    """Fill placeholders; a key "..." splices the dictionary it names into its place."""
    if isinstance(node, dict):
        filled: dict[str, Any] = {}
        for key, value in node.items():
            if key == "...":
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
        raise ValueError(f"a template names <{key}>, which the table of backbones lacks.")
    return values[key]


def _source(path: str) -> str:
    return resources.files("mod_components.release").joinpath(path).read_text(encoding="utf-8")
