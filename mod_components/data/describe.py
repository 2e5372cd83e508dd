"""What transforms are and do, in plain values."""

from __future__ import annotations

import dis
import functools
import itertools
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

__all__ = ["describe"]

# What MONAI's transforms and NibabelReader note in themselves when they are used
_STATE = ("_tracing", "filenames")
# MONAI puts it in place of @ in the expressions of a config
_REFERENCES = "__local_refs"
# What stands for itself when a function refers to it; the like of a logger is told by its name.
_PLAIN: tuple[type, ...] = (bool, int, float, str, list, tuple, set, frozenset, Mapping)
_PLAIN += (np.ndarray, torch.Tensor, types.FunctionType, functools.partial, Transform)


def describe(value: Any) -> Any:
    """What a transform is and does, in plain values: equal in every process.

    Args:
        value: a transform, or what it holds.

    Returns:
        Lists, strings and numbers. What cannot be described gives another text in each process.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return sorted(([str(key), describe(entry)] for key, entry in value.items()), key=str)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        given = (value.__defaults__, value.__kwdefaults__, cells, _globals(value))
        return [value.__qualname__, *map(describe, (value.__code__, *given))]
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), list(value.co_names), describe(value.co_consts)]
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, (type, types.MethodType)) or not hasattr(value, "__dict__"):
        return repr(value)
    held = {key: entry for key, entry in vars(value).items() if key not in _STATE}
    return [type(value).__name__, describe(held)]


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Values from outside that a function uses, and those of a config that it names with ``@``.

    Functions and classes of its module are left out: their source counts where it is a transform's.
    """
    outside = dict(function.__globals__)
    outside |= {f"@{name}": value for name, value in outside.pop(_REFERENCES, {}).items()}
    return {
        name: outside[name] if isinstance(outside[name], _PLAIN) else repr(outside[name])
        for name in _names(function.__code__) & outside.keys()
        if name.startswith("@")
        or not (callable(outside[name]) or isinstance(outside[name], types.ModuleType))
    }


def _names(code: types.CodeType) -> set[str]:
    """Names that a function's code takes from outside, and those that functions inside it take."""
    found = set(code.co_names)
    for first, second in itertools.pairwise(dis.get_instructions(code)):
        if first.argval == _REFERENCES:
            found.add(f"@{second.argval}")
    return found.union(
        *(_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    )
