"""``configs/metadata.json`` against MONAI's bundle specification and against this project's rules.

MONAI's own ``verify_metadata`` fetches the schema from the network; the fields that the
specification (https://docs.monai.io/en/stable/mb_specification.html) and the schema make mandatory
are written down here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from mod_components.release.checks.bundle import Bundle, Problem, strings
from mod_components.release.render import backbones, render_bundle

__all__ = ["METADATA", "check_metadata", "smallest_shape"]

METADATA = "configs/metadata.json"
MANDATORY: dict[str, type] = {
    "schema": str,
    "version": str,
    "changelog": dict,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "name": str,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "intended_use": str,
    "network_data_format": dict,
}
OPTIONAL: dict[str, type] = {
    "supported_apps": dict,
    "data_source": str,
    "data_type": str,
    "image_classes": str,
    "label_classes": str,
    "pred_classes": str,
    "eval_metrics": dict,
    "references": list,
}
TENSOR: dict[str, type] = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
MAY_BE_EMPTY = {"value_range", "eval_metrics", "supported_apps", "references"}
NAMES = {str: "text", dict: "an object", list: "a list", int: "a whole number", bool: "a boolean"}
VERSION = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"
)
TENSORS = {"inputs": "image", "outputs": "pred"}


def check_metadata(bundle: Bundle) -> list[Problem]:
    """Find mandatory fields that are missing or wrong, and tensors described otherwise than ours.

    Args:
        bundle: the bundle.
    """
    if METADATA not in bundle.documents:
        return []  # missing, or no JSON: reported by the checks of files
    metadata = bundle.object(METADATA)
    messages = [*_fields(metadata, MANDATORY, ""), *_optional(metadata), *_versions(metadata)]
    messages += _evaluated(metadata)
    formats = metadata.get("network_data_format")
    if isinstance(formats, dict):
        for kind, name in TENSORS.items():
            messages += _tensor(formats, kind, name)
    return [Problem("metadata", METADATA, message) for message in messages]


def smallest_shape(metadata: Mapping[str, Any]) -> list[int]:
    """Size of the smallest input that metadata allow: its variables are 1.

    Args:
        metadata: content of ``metadata.json``.

    Returns:
        Batch, channels and spatial sizes, such as ``[1, 4, 64, 64, 64]``; empty where they can't
        be told.
    """
    try:
        tensor = metadata["network_data_format"]["inputs"]["image"]
        sizes = [_size(side) for side in tensor["spatial_shape"]]
        return [1, int(tensor["num_channels"]), *sizes] if all(sizes) else []
    except (LookupError, TypeError, ValueError):
        return []


@cache
def _expected() -> dict[str, Any]:
    """The template's own description of the tensors, which all bundles share."""
    rendered = render_bundle(next(iter(backbones())))
    return dict(json.loads(rendered[METADATA]))


def _fields(found: Mapping[str, Any], table: Mapping[str, type], where: str) -> Iterator[str]:
    for key, kind in table.items():
        name = f"{where}{key}"
        if key not in found:
            yield f"{name!r} is missing; add {NAMES[kind]}"
        elif not isinstance(found[key], kind) or (kind is int and isinstance(found[key], bool)):
            yield f"{name!r} is not {NAMES[kind]}; write it as such"
        elif kind in (str, list, dict) and key not in MAY_BE_EMPTY and not _filled(found[key]):
            yield f"{name!r} is empty; fill it in"


def _filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _optional(metadata: Mapping[str, Any]) -> Iterator[str]:
    present = {key: kind for key, kind in OPTIONAL.items() if key in metadata}
    yield from _fields(metadata, present, "")
    if "optional_packages_version" in metadata:
        yield (
            "'optional_packages_version' is deprecated; move its packages to "
            "'required_packages_version'"
        )


def _evaluated(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What MONAI would evaluate, look up or build, as it does in a config."""
    for where, text in strings(metadata):
        if text.startswith(("$", "@", "%")) or re.fullmatch(r"_\w+_", text):
            yield f"{where!r} is an expression, {text[:40]!r}; write plain text"


def _versions(metadata: Mapping[str, Any]) -> Iterator[str]:
    schema, version = metadata.get("schema"), metadata.get("version")
    current = str(_expected()["schema"])
    if isinstance(schema, str) and schema.rpartition("/")[2] != current.rpartition("/")[2]:
        yield f"'schema' is {schema!r}, not the current one; give {current}"
    if not isinstance(version, str) or not version:
        return
    changelog = metadata.get("changelog")
    if not VERSION.fullmatch(version):
        yield f"'version' is {version!r}; give major.minor.patch, such as 0.1.0"
    elif isinstance(changelog, dict) and changelog and not changelog.get(version):
        yield f"'changelog' says nothing of version {version}; add what changed in it"


def _tensor(formats: Mapping[str, Any], kind: str, name: str) -> Iterator[str]:
    tensors = formats.get(kind)
    tensor = tensors.get(name) if isinstance(tensors, dict) else None
    where = f"network_data_format#{kind}#{name}"
    if not isinstance(tensor, dict):
        yield f"{where!r} is missing; describe that tensor there"
        return
    table = {**TENSOR, "modality": str} if kind == "inputs" else TENSOR
    yield from _fields(tensor, table, f"{where}#")
    expected = _expected()["network_data_format"][kind][name]
    for key in ("num_channels", "channel_def"):
        value = tensor.get(key)
        if value and isinstance(value, TENSOR[key]) and value != expected[key]:
            yield f"'{where}#{key}' is {json.dumps(value)}; give {json.dumps(expected[key])}"
    shape = tensor.get("spatial_shape")
    if isinstance(shape, list) and shape and not (len(shape) == 3 and all(map(_size, shape))):
        yield (
            f"'{where}#spatial_shape' is {json.dumps(shape)}; give three sizes, each a number or "
            "such as '64*n'"
        )


def _size(side: Any) -> int:
    """The smallest size that one entry of a spatial shape allows; 0 where there is none."""
    if isinstance(side, int) and not isinstance(side, bool):
        return max(side, 0)
    match = re.fullmatch(r"([1-9]\d{0,3})(\*[a-z])?", str(side))
    return int(match[1]) if match else 0
