"""Patch embeddings as matrix products during the passes that stop at a tap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["patches_as_products"]

SMALLEST = 8**3  # voxels of a patch from which the product is the quicker one


@contextmanager
def patches_as_products(network: nn.Module) -> Iterator[None]:
    """Let convolutions that cut an image into large patches be computed as matrix products.

    That is what they are. On the CPU the gradient of such a convolution with respect to the image,
    which the learnable fill of masked voxels needs, takes several times as long as the product's.
    Elsewhere nothing changes. Results differ by rounding.

    Args:
        network: the network to run inside the context.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    changed = [module for module in convolutions if _cuts_large_patches(module)]
    for module in changed:
        module.__dict__["forward"] = partial(_product, module)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _cuts_large_patches(module: nn.Conv3d) -> bool:
    return (
        module.kernel_size == module.stride
        and module.kernel_size[0] * module.kernel_size[1] * module.kernel_size[2] >= SMALLEST
        and module.padding == (0, 0, 0)
        and module.dilation == (1, 1, 1)
        and module.groups == 1
        and "forward" not in module.__dict__
    )


def _product(module: nn.Conv3d, x: Tensor) -> Tensor:
    """``Conv3d.forward`` of images (B, C, D, H, W); returns (B, C_out, d, h, w)."""
    if x.device.type != "cpu":
        return nn.Conv3d.forward(module, x)
    a, b, c = module.kernel_size
    d, h, w = x.shape[2] // a, x.shape[3] // b, x.shape[4] // c
    x = x[:, :, : d * a, : h * b, : w * c]
    x = x.reshape(*x.shape[:2], d, a, h, b, w, c).permute(0, 2, 4, 6, 1, 3, 5, 7)
    patches = x.reshape(len(x), d, h, w, -1)  # (B, d, h, w, C·a·b·c)
    return F.linear(patches, module.weight.flatten(1), module.bias).movedim(-1, 1)
