"""Faster ways on the CPU to compute convolutions in the passes that stop at a tap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mod_components.networks.overrides import attributes_set, kept

__all__ = ["fast_convolutions"]

SMALLEST_PATCH = 8**3  # voxels from which a matrix product is quicker than the convolution


@contextmanager
def fast_convolutions(network: nn.Module) -> Iterator[None]:
    """Let 3D convolutions take a quicker way on the CPU; on other devices nothing changes.

    * Those that cut an image into large patches are computed as the matrix products that they
      are. Their gradient with respect to the image, which the learnable fill of masked voxels
      needs, takes several times as long otherwise.
    * With a single image PyTorch takes a slow kernel for small volumes. oneDNN is asked for by
      name instead.

    The layers are as before afterwards. Results differ by rounding.

    Args:
        network: the network to run inside the context.
    """
    layers = [
        module
        for module in network.modules()
        if type(module) is nn.Conv3d and _is_plain(module) and "forward" not in module.__dict__
    ]
    with attributes_set((layer, "forward", kept(_convolve, layer)) for layer in layers):
        yield


def _is_plain(layer: nn.Conv3d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _convolve(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """``Conv3d.forward`` of images (B, C, D, H, W); returns (B, C_out, d, h, w)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        if _cuts_large_patches(layer):
            return _as_product(layer, x)
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if len(x) == 1 and plain and torch.backends.mkldnn.is_available():
            return torch.mkldnn_convolution(
                x,
                layer.weight,
                layer.bias,
                cast("tuple[int, ...]", layer.padding),
                layer.stride,
                layer.dilation,
                layer.groups,
            )
    return nn.Conv3d.forward(layer, x)


def _cuts_large_patches(layer: nn.Conv3d) -> bool:
    a, b, c = layer.kernel_size
    return (
        a * b * c >= SMALLEST_PATCH
        and layer.kernel_size == layer.stride
        and layer.padding == (0, 0, 0)
        and layer.dilation == (1, 1, 1)
        and layer.groups == 1
    )


def _as_product(layer: nn.Conv3d, x: Tensor) -> Tensor:
    a, b, c = layer.kernel_size
    d, h, w = x.shape[2] // a, x.shape[3] // b, x.shape[4] // c
    x = x[:, :, : d * a, : h * b, : w * c]
    x = x.reshape(*x.shape[:2], d, a, h, b, w, c).permute(0, 2, 4, 6, 1, 3, 5, 7)
    patches = x.reshape(len(x), d, h, w, -1)  # (B, d, h, w, C·a·b·c)
    return F.linear(patches, layer.weight.flatten(1), layer.bias).movedim(-1, 1)
