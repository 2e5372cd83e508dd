"""Passes of a network beside its own training: quicker, smaller, and without a mark left on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mod_components.networks.attention import fast_attention
from mod_components.networks.convolutions import fast_convolutions
from mod_components.networks.overrides import attributes_set

__all__ = ["batch_statistics_kept", "leaves", "parts", "parts_checkpointed", "side_pass"]


@contextmanager
def side_pass(network: nn.Module) -> Iterator[None]:
    """Run a network beside its own training: quicker, and without a mark left on it.

    Batch norm layers use a batch's statistics without adding them to their running ones; attention
    and convolutions are computed as :func:`~mod_components.networks.attention.fast_attention` and
    :func:`~mod_components.networks.convolutions.fast_convolutions` do.

    Args:
        network: the network, not wrapped.
    """
    with batch_statistics_kept(network), fast_attention(network), fast_convolutions(network):
        yield


@contextmanager
def batch_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let batch norm layers use a batch's statistics without adding them to their running ones."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with attributes_set((layer, "track_running_stats", False) for layer in layers):
        yield


def parts(network: nn.Module, tap: str) -> list[nn.Module]:
    """The largest modules that can be run apart without touching the tapped one.

    These are the modules next to the way from the network down to the tap, and those right inside
    the tapped module; where one is a mere list, its entries.

    Args:
        network: the network, not wrapped.
        tap: dotted name of the tapped module.
    """
    found: list[nn.Module] = []

    def look_into(module: nn.Module, name: str) -> None:
        on_the_way = name in ("", tap) or tap.startswith(f"{name}.")
        if on_the_way or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            for child, inner in module.named_children():
                look_into(inner, f"{name}.{child}" if name else child)
        else:
            found.append(module)

    look_into(network, "")
    return found


def leaves(network: nn.Module) -> dict[str, Tensor]:
    """Stand-ins that hand a gradient on to their parameter as soon as they get it.

    A parameter that two passes use gets its gradient when both have given theirs; until then the
    first pass's gradients would all be held beside those that the optimizer holds anyway.

    With ``DistributedDataParallel`` this is sound as autograd takes the later pass, this one,
    first: the wrapper shares a parameter's gradient when the network's own pass has added to it.
    """

    def hand_on(parameter: nn.Parameter, leaf: Tensor) -> None:
        if parameter.grad is None:
            parameter.grad = leaf.grad
        elif leaf.grad is not None:
            parameter.grad += leaf.grad
        leaf.grad = None

    leaves: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            leaves[name] = parameter.detach().requires_grad_()
            leaves[name].register_post_accumulate_grad_hook(partial(hand_on, parameter))
    return leaves


@contextmanager
def parts_checkpointed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules keep their inputs alone for the backward pass."""

    def again(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with side_pass(module):  # the backward pass comes when the tap's own context is gone
            return forward(*args, **kwargs)

    def run(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inside = partial(again, module, forward)
        return checkpoint(inside, *args, use_reentrant=False, **kwargs)

    functions = [(module, "forward", partial(run, module, module.forward)) for module in modules]
    with attributes_set(functions):
        yield
