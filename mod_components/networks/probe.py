"""Probes: what a frozen encoder's features are worth, without training the encoder further."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mod_components.networks.tap import Tap, plain_module
from mod_components.networks.unused import without_values

__all__ = ["PointProbe", "encoder_modules", "freeze", "probe_tap"]


def encoder_modules(
    network: nn.Module, tap: str, size: Sequence[int], channels: int = 4
) -> set[str]:
    """Names of the modules that the feature at a tap depends on.

    Args:
        network: the network, wrapped or not.
        tap: dotted name of the tapped module.
        size: (D, H, W) of an image that the network takes, in voxels.
        channels: image channels.

    Raises:
        SettingsError: when the network has no such module.
    """
    return probe_tap(network, Tap(tap), (1, channels, *size))[1]


def probe_tap(
    network: nn.Module, tap: Tap, size: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[tuple[int, ...], set[str]]:
    """Shape of the feature at a tap and the modules that it needs, as :meth:`Tap.probe` has them.

    Args:
        network: the network, wrapped or not.
        tap: the tap.
        size: (B, C, D, H, W) of a batch that the network takes.
        device: the network's.
    """
    try:  # without computing anything, where all operations of the network can do that
        twin = without_values(plain_module(network))
        return tap.probe(twin, torch.zeros(*size, device="meta"))
    except (NotImplementedError, RuntimeError):
        return tap.probe(network, torch.zeros(*size, device=device))


def freeze(modules: Iterable[nn.Module]) -> None:
    """Take modules out of the training for good: no gradients, and always in eval mode.

    Args:
        modules: the modules; changed in place. What is inside one is frozen only if it is among
            them too.
    """
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        module.training = False
        # a trainer sets the whole network to train: batch norm and dropout must not follow
        module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    for child in module.children():
        child.train(mode)
    return module


class PointProbe(nn.Module):
    """A frozen network up to its tap, one 1×1×1 convolution, and nothing else.

    The strictest probe of an encoder: logits are a linear function of the feature at each token,
    enlarged to the image.

    Args:
        network: the network whose encoder is probed.
        tap: dotted name of the tapped module.
        roi_size: (D, H, W) of the training crops in voxels.
        layer_norm: see :class:`~mod_components.networks.Tap`.
        in_channels: image channels.
        out_channels: regions.
    """

    def __init__(
        self,
        network: nn.Module,
        tap: str,
        roi_size: Sequence[int],
        layer_norm: bool = False,
        in_channels: int = 4,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.tap = Tap(tap, layer_norm)
        shape, _ = probe_tap(network, self.tap, (1, in_channels, *roi_size))
        self.encoder = network
        freeze(self.encoder.modules())
        self.head = nn.Conv3d(shape[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment images (B, in_channels, D, H, W); returns logits (B, out_channels, D, H, W)."""
        with torch.no_grad():
            feature = self.tap(self.encoder, x)  # (B, C, d, h, w)
        logits = self.head(feature)
        return F.interpolate(logits, x.shape[2:], mode="trilinear", align_corners=False)
