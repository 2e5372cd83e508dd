"""Options that make a network's passes faster and leave its weights and their names alone."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from mod_components.networks.tap import parts

__all__ = ["prepare_network"]

Network = TypeVar("Network", bound=nn.Module)


def prepare_network(
    network: Network, tap: str, *, channels_last: bool = False, compile_parts: bool = False
) -> Network:
    """Set a network's memory format, and let ``torch.compile`` work on its parts.

    The parts are compiled one by one, around the way to the tap, so that a pass can still stop
    there: the blocks of a transformer, the stages of a decoder. Names in the ``state_dict`` stay,
    so checkpoints, resuming, inference and export do not notice.

    Args:
        network: the network on its device, not wrapped; changed in place.
        tap: dotted name of the tapped module.
        channels_last: keep volumes with their channels last.
        compile_parts: compile each part at its first call.

    Returns:
        The network.
    """
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if compile_parts:
        # the compiler cannot see through a subclass of Tensor
        network.register_forward_pre_hook(_without_metadata)
        for part in parts(network, tap):
            part.compile()
    return network


def _without_metadata(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.as_tensor() if hasattr(x, "as_tensor") else x for x in args)
