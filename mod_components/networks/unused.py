"""Parameters that no forward pass uses."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["freeze_unused", "unused_parameters", "without_values"]

logger = logging.getLogger("mod_components.networks")

Network = TypeVar("Network", bound=nn.Module)


def unused_parameters(network: nn.Module, size: Sequence[int], channels: int = 4) -> list[str]:
    """Find the parameters that the output does not depend on.

    A copy on the meta device runs forward, which computes nothing and takes no memory, and leaves
    the graph of gradients to look through. No weight is copied for it.

    Args:
        network: the network, not wrapped.
        size: (D, H, W) of an image that it takes, in voxels.
        channels: image channels.

    Returns:
        Names of parameters.

    Raises:
        ValueError: when the network returns something else than one tensor that depends on
            parameters.
    """
    probe = without_values(network).requires_grad_(True)
    with torch.enable_grad():
        output = probe(torch.zeros(1, channels, *size, device="meta"))
    if not isinstance(output, torch.Tensor) or output.grad_fn is None:
        raise ValueError(f"{type(network).__name__} does not return a tensor with gradients.")
    used = {id(parameter) for parameter in _leaves(output)}
    return [name for name, parameter in probe.named_parameters() if id(parameter) not in used]


def freeze_unused(network: Network, size: Sequence[int], channels: int = 4) -> Network:
    """Take the parameters that no forward pass uses out of the training.

    MONAI's ViT and UNETR hold a layer norm of a cross attention that they do not have.
    ``DistributedDataParallel`` would wait for its gradients and stop the training.

    Args:
        network: the network, not wrapped; changed in place.
        size: (D, H, W) of an image that it takes, in voxels.
        channels: image channels.

    Returns:
        The network. Its weights and the names in its ``state_dict`` stay as they are. Where it
        cannot run on the meta device, or does not return one tensor, a warning says so and nothing
        is frozen.
    """
    try:
        names = unused_parameters(network, size, channels)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        logger.warning(
            "parameters that %s does not use were not looked for, so none is frozen: %s",
            type(network).__name__,
            error,
        )
        return network
    if names:
        logger.info("frozen, as no forward pass uses them: %s", ", ".join(names))
    parameters = dict(network.named_parameters())
    for name in names:
        parameters[name].requires_grad_(False)
    return network


def without_values(network: nn.Module) -> nn.Module:
    """A copy on the meta device, of which no tensor's values are copied first."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    return copy.deepcopy(network, memo).to("meta")


def _leaves(output: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors at the ends of the graph of gradients of an output."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        waiting += [following for following, _ in node.next_functions]
