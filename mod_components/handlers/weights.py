"""Weights in files: read, compared with a network, loaded strictly."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mod_components.errors import CheckpointError
from mod_components.networks import plain_module

__all__ = ["check_fit", "first_not_finite", "load_weights", "read_checkpoint"]

logger = logging.getLogger("mod_components.checkpoint")


def check_fit(network: nn.Module, weights: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Compare names and shapes of weights with a network's before loading them.

    Args:
        network: the plain network.
        weights: a state_dict.
        path: the file it came from, for the message.

    Raises:
        CheckpointError: naming the file, the first differences and the mend.
    """
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    new = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    if own == new:
        return
    differences = [
        f"{name}: {new.get(name, 'missing')} in the file, {own.get(name, 'missing')} in the network"
        for name in [*own, *(name for name in new if name not in own)]
        if own.get(name) != new.get(name)
    ]
    raise CheckpointError(
        f"{path} does not fit {type(network).__name__}: {len(differences)} of {len(own)} tensors "
        f"differ, first {'; '.join(differences[:3])}. Give the network settings that it was "
        "trained with (its training.json lists them)."
    )


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a flat state_dict into a network, strictly.

    Args:
        network: the network, wrapped or not.
        path: a ``model.pt``.

    Returns:
        The network.

    Raises:
        CheckpointError: when the file is missing, damaged, or does not fit.
    """
    weights = read_checkpoint(Path(path))
    module = plain_module(network)
    check_fit(module, weights, path)
    module.load_state_dict(weights)
    logger.info("loaded %s", path)
    return network


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain numbers.

    Args:
        path: a file that :class:`~mod_components.handlers.Checkpoint` has written.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: train first, or give its folder.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict.")
    return content


def first_not_finite(module: nn.Module) -> str | None:
    """Name of the first parameter that is not finite, or buffer with a NaN, if there is one.

    Args:
        module: a network or another module. Infinite buffers are none of its training's making:
            some networks keep masks of -inf.
    """
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters())
    lost = [~parameter.detach().isfinite() for parameter in tensors.values()]
    for name, buffer in module.named_buffers():
        tensors[name] = buffer
        lost.append(buffer.isnan())
    if not lost or not torch.stack([part.any() for part in lost]).any():  # one answer to wait for
        return None
    return next(name for name, part in zip(tensors, lost, strict=True) if part.any())
