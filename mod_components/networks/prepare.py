"""Options that make a network's passes faster and leave its weights and their names alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from mod_components.networks.side_pass import parts

__all__ = ["compile_all", "is_compiled", "prepare_network"]

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
        for parameter in network.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    if compile_parts:
        # the compiler cannot see through a subclass of Tensor
        network.register_forward_pre_hook(_without_metadata)
        compile_all(parts(network, tap))
    return network


def compile_all(modules: Sequence[nn.Module]) -> None:
    """Let ``torch.compile`` compile each module at its first call.

    Args:
        modules: the modules; those of one class share the compiler's limit of variants.
    """
    import torch._dynamo  # late: it takes seconds

    limit = torch._dynamo.config.cache_size_limit
    # training, evaluation, MOD's passes with gradients and without, and room for other sizes
    torch._dynamo.config.cache_size_limit = max(limit, 8 * len(modules))
    for module in modules:
        module.compile()


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is to be compiled at its next call, or is so already."""
    return getattr(module, "_compiled_call_impl", None) is not None


def _without_metadata(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.as_tensor() if hasattr(x, "as_tensor") else x for x in args)
