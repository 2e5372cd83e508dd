"""Sizes of images that networks with position embeddings take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple
from torch import Tensor

from mod_components.errors import SettingsError

__all__ = ["check_image", "checked_size"]


def checked_size(img_size: Sequence[int], multiple: int) -> tuple[int, int, int]:
    """Check the image size that a network is built for.

    Args:
        img_size: (D, H, W) in voxels.
        multiple: what every side must be a multiple of.

    Returns:
        The size as a tuple.

    Raises:
        SettingsError: when it does not fit.
    """
    sides = ensure_tuple(img_size)
    if len(sides) != 3 or any(side < multiple or side % multiple for side in sides):
        raise SettingsError(
            f"img_size must be three multiples of {multiple}, e.g. (128, 128, 128), got {img_size}."
        )
    return int(sides[0]), int(sides[1]), int(sides[2])


def check_image(x: Tensor, img_size: tuple[int, int, int]) -> None:
    """Refuse an image of another size than the network was built for.

    Args:
        x: images (B, C, D, H, W).
        img_size: (D, H, W) in voxels.

    Raises:
        SettingsError: when they differ.
    """
    # in a trace the comparison would become a constant, with a warning
    if not torch.jit.is_tracing() and tuple(x.shape[2:]) != img_size:
        raise SettingsError(
            f"img_size is {img_size} and got images of {tuple(x.shape[2:])} voxels: give patches "
            "of img_size, or build and train the network with another img_size."
        )
