"""The feature of one named inner module of any network, taken without editing the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mod_components.errors import SettingsError
from mod_components.networks.side_pass import leaves, parts, parts_checkpointed, side_pass

__all__ = ["Tap", "plain_module"]


class _StopForwardError(Exception):
    """Raised by the tap's hook to end a forward pass as soon as the feature is there."""


def plain_module(network: nn.Module) -> nn.Module:
    """Return the network without its ``DistributedDataParallel`` and ``torch.compile`` wrappers.

    Args:
        network: a module, wrapped or not.
    """
    while True:
        if isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


class Tap:
    """Runs a network up to one inner module and returns that module's output as a feature map.

    The forward pass stops there, so that passes which need the feature alone do not pay for the
    decoder. The hook exists only during the call; running statistics of batch norm layers are left
    as they were, so that masked images never leak into the trained network.

    Args:
        name: dotted name of the module whose output is wanted, as in ``network.named_modules()``.
            MOD's ``efm`` (encoder feature map) is this output.
        layer_norm: apply a parameterless layer norm over the channels to the output, as MONAI's
            Swin transformer does to the stages it hands to its decoder.
        use_checkpoint: with gradients, keep only what goes from one part of the network to the
            next, and compute what is inside the parts again in the backward pass: less memory for
            more time.
    """

    def __init__(self, name: str, layer_norm: bool = False, use_checkpoint: bool = False) -> None:
        self.name = name
        self.layer_norm = layer_norm
        self.use_checkpoint = use_checkpoint

    def module(self, network: nn.Module) -> nn.Module:
        """Return the tapped module.

        Args:
            network: the network, wrapped or not.

        Raises:
            SettingsError: when the network has no such module, or one that is never called itself.
        """
        network = plain_module(network)
        try:
            module = network.get_submodule(self.name)
        except AttributeError:
            raise SettingsError(
                f"tap: {type(network).__name__} has no module {self.name!r}; give the dotted name "
                f"of one of its modules, e.g. {_some_names(network)}."
            ) from None
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise SettingsError(
                f"tap: {self.name!r} is a {type(module).__name__}, which holds modules but is "
                f"never called; name one inside it, e.g. '{self.name}.0'."
            )
        return module

    def __call__(self, network: nn.Module, x: Tensor) -> Tensor:
        """Compute the feature.

        Args:
            network: the network, wrapped or not.
            x: images (B, C_in, D, H, W).

        Returns:
            The feature map (B, C, d, h, w).

        Raises:
            SettingsError: as :meth:`module`; or when the module's output is no feature map.
            RuntimeError: when the forward pass ends without calling the module.
        """
        network = plain_module(network)
        caught: list[Any] = []

        def stop(_module: nn.Module, _args: Any, output: Any) -> None:
            caught.append(output)
            raise _StopForwardError

        with ExitStack() as stack:
            stack.enter_context(self.module(network).register_forward_hook(stop))
            stack.enter_context(side_pass(network))
            stack.enter_context(suppress(_StopForwardError))
            if self.use_checkpoint and torch.is_grad_enabled():
                stack.enter_context(parts_checkpointed(parts(network, self.name)))
                functional_call(network, leaves(network), (x,))
            else:
                network(x)
        if not caught:
            raise RuntimeError(f"tap: the forward pass never called {self.name!r}.")
        return self.as_feature(caught[0], x.shape[2:])

    @contextmanager
    def listening(self, network: nn.Module) -> Iterator[list[Any]]:
        """Note the module's outputs during passes that go on to their ends.

        Args:
            network: the network, wrapped or not.

        Yields:
            A list that gets what the module returns; :meth:`as_feature` makes features of it.
        """
        heard: list[Any] = []
        with self.module(network).register_forward_hook(lambda *args: heard.append(args[2])):
            yield heard

    def as_feature(self, output: Any, image_size: Sequence[int]) -> Tensor:
        """Make a feature map (B, C, d, h, w) of the module's output.

        Args:
            output: what the module returned.
            image_size: (D, H, W) of the image in voxels.

        Raises:
            SettingsError: when it is no feature map.
        """
        feature = as_feature_map(output, image_size)
        if self.layer_norm:
            feature = F.layer_norm(feature.movedim(1, -1), feature.shape[1:2]).movedim(-1, 1)
        return feature

    @torch.no_grad()
    def probe(self, network: nn.Module, x: Tensor) -> tuple[tuple[int, ...], set[str]]:
        """Find the feature's shape and the modules that it depends on, by one pass in eval mode.

        Args:
            network: the network, wrapped or not; its mode and the random state are restored.
            x: an image batch of the size that training will use.

        Returns:
            The shape (C, d, h, w), and the names of the modules that a network without decoder
            must keep.
        """
        network = plain_module(network)
        called: set[str] = set()
        finished: set[str] = set()
        handles = []
        for name, module in network.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda _m, _a, name=name: called.add(name)),
                module.register_forward_hook(lambda _m, _a, _o, name=name: finished.add(name)),
            ]
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            devices = [x.device] if x.is_cuda else []
            with torch.random.fork_rng(devices=devices):
                shape = tuple(self(network, x).shape[1:])
        finally:
            for handle in handles:
                handle.remove()
            for module, training in modes.items():
                module.training = training
        names = [name for name, _ in network.named_modules()]
        return shape, {name for name in names if _is_needed(name, called, finished)}


def as_feature_map(output: Any, image_size: Sequence[int]) -> Tensor:
    """Bring a module's output into the shape (B, C, d, h, w).

    Args:
        output: (B, C, d, h, w); or tokens (B, N, C) of a transformer, N = d·h·w in row-major order
            on a grid of one stride in every direction; or a tuple whose first entry is either.
        image_size: (D, H, W) of the image in voxels.

    Raises:
        SettingsError: for any other output.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor) and output.ndim == 5:
        return output
    if isinstance(output, Tensor) and output.ndim == 3:
        tokens = output.shape[1]
        voxels = image_size[0] * image_size[1] * image_size[2]
        stride = round((voxels / tokens) ** (1 / 3))
        grid = [size // stride for size in image_size]
        if grid[0] * grid[1] * grid[2] == tokens:
            # (B, N, C) -> (B, C, d, h, w)
            return output.transpose(1, 2).reshape(output.shape[0], output.shape[2], *grid)
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise SettingsError(
        f"tap: expected an output (B, C, d, h, w) or tokens (B, N, C) that tile an image of "
        f"{tuple(image_size)} voxels, got {got}; tap another module."
    )


def _some_names(network: nn.Module) -> str:
    names = [n for n, m in network.named_modules() if n and not isinstance(m, nn.ModuleList)]
    return ", ".join(repr(n) for n in names if n.count(".") <= 2)[:300]


def _is_needed(name: str, called: set[str], finished: set[str]) -> bool:
    """Whether a module, one inside it or a finished one around it took part in a stopped pass.

    A module whose forward pass ended may have used its children's weights without calling them (as
    ``nn.MultiheadAttention`` does); one that was stopped half-way has called all it needed.
    """
    inside = any(other == name or other.startswith(f"{name}.") for other in called if name)
    around = any(name.startswith(f"{other}.") for other in finished if other)
    return not name or inside or around
