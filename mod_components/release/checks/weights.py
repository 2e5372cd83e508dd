"""``models/model.pt``, without any network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.checks.files import WEIGHTS

__all__ = ["OF_MOD", "check_weights", "load_weights"]

OF_MOD = frozenset(
    {
        *("mod", "views", "fill", "teacher", "student", "tokenizer", "predictor", "centre"),
        *("token_head", "class_head", "token_centre", "class_centre"),
    }
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SAVE = "save the plain network's state_dict: torch.save(network.state_dict(), path)"


def check_weights(bundle: Bundle) -> list[Problem]:
    """Find weights that are not a flat state_dict of finite tensors of the plain network alone.

    MONAI and MONAI Label load weights that do not fit silently, and go on with random ones.

    Args:
        bundle: the bundle; no pickled code may be in it.
    """
    if WEIGHTS not in bundle.entries:
        return []
    try:
        weights = load_weights(bundle)
    except Exception as error:  # what a damaged file makes torch raise is of many types
        first = str(error).strip().partition("\n")[0]
        message = f"can't be loaded with weights_only=True ({first}); {SAVE}"
        return [Problem("weights", WEIGHTS, message)]
    return [Problem("weights", WEIGHTS, message) for message in _weights(weights)]


def load_weights(bundle: Bundle) -> Any:
    """What is in ``model.pt``, on the CPU; code in it is never run.

    Args:
        bundle: the bundle.
    """
    path = bundle.folder / WEIGHTS
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _weights(weights: Any) -> Iterator[str]:
    if not isinstance(weights, Mapping) or not weights:
        yield f"holds a {type(weights).__name__}, not a state_dict; {SAVE}"
        return
    if nested := [str(key) for key, value in weights.items() if isinstance(value, Mapping)]:
        yield f"is nested: the weights stand under {nested[0]!r}; {SAVE}"
        return
    others = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        yield f"holds {len(others)} values that are no tensors, first {others[0]!r}; {SAVE}"
        return
    for prefix in ("module.", "_orig_mod."):
        if all(str(key).startswith(prefix) for key in weights):
            yield f"has names that start with {prefix!r}, of a wrapped network; {SAVE}"
            return
    if of_mod := [key for key in weights if OF_MOD & set(str(key).split("."))]:
        yield f"holds {len(of_mod)} tensors of MOD, first {of_mod[0]!r}; {SAVE}"
    infinite = [
        key
        for key, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if infinite:
        yield (
            f"has {len(infinite)} tensors that are not finite, first {infinite[0]!r}; train again, "
            "with a smaller learning rate"
        )
    if other := [k for k, v in weights.items() if v.is_floating_point() and v.dtype not in FLOATS]:
        yield (
            f"has {len(other)} tensors of {weights[other[0]].dtype}, first {other[0]!r}; save "
            "them as torch.float32, as training does"
        )
    if not any(bool(value.any()) for value in weights.values() if value.is_floating_point()):
        yield "is zero everywhere, as no training leaves it; copy it from the training's folder"
