"""Binary masks of tumour regions: checked, counted and cropped; and the size of their voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "SAME_SIZE",
    "binary_masks",
    "bounding_box",
    "count",
    "crop_to_masks",
    "spacing_of",
    "voxel_size",
]

SAME_SIZE = 1e-5
"""Lengths and volumes that differ by less than this share of themselves are the same: headers keep
voxel sizes as 32-bit floats, and one that is meant to be 1 mm may be 1.0000001."""

Box = tuple[slice, ...]


def binary_masks(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both masks as plain bool tensors.

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.

    Returns:
        Two bool tensors (C, D, H, W), each on the device of its argument.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, or a mask is not binary.
    """
    if pred.shape != truth.shape or pred.ndim != 4:
        raise ValueError(
            "pred and truth must both be (C, D, H, W), "
            f"got {tuple(pred.shape)} and {tuple(truth.shape)}."
        )
    return _as_mask(pred, "pred"), _as_mask(truth, "truth")


def _as_mask(tensor: Tensor, name: str) -> Tensor:
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    plain = plain.detach()
    if plain.dtype is torch.bool:
        return plain
    # On a CPU, NumPy compares and picks voxels some five times faster than torch.
    numpy = plain.device.type == "cpu" and plain.dtype is not torch.bfloat16
    values: Any = plain.numpy() if numpy else plain
    mask = values != 0
    # Logits or label maps would give a plausible, wrong number.
    if not bool((values[mask] == 1).all()):
        raise ValueError(f"{name} must hold 0 and 1 only; is a post-processing step missing?")
    return torch.as_tensor(mask)


def count(masks: Tensor) -> Tensor:
    """True voxels of each channel of bool masks (C, D, H, W), as (C,)."""
    # Whole tensors are counted some 20 times faster than along dimensions.
    return torch.stack([mask.count_nonzero() for mask in masks])


def bounding_box(mask: NDArray[np.bool_], margin: int = 0) -> Box:
    """Slices that hold all of a mask and a margin around it, cut at the border of the volume.

    Args:
        mask: (D, H, W).
        margin: voxels on every side.

    Returns:
        One slice an axis; all empty where the mask is.
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        # What is known to be empty isn't read again for the next axis.
        inside = mask[tuple(box)]
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(inside.any(axis=others))
        if not occupied.size:
            return (slice(0, 0),) * mask.ndim
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(
        slice(max(s.start - margin, 0), min(s.stop + margin, size))
        for s, size in zip(box, mask.shape, strict=True)
    )


def crop_to_masks(pred: Tensor, truth: Tensor, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Both masks on the CPU, cut to one box that holds every channel of both.

    Args:
        pred: predicted masks, bool, (C, D, H, W).
        truth: true masks, of the same shape.
        margin: voxels around the box, as far as the volume goes.

    Returns:
        Two bool tensors (C, d, h, w); of no voxels where all masks are empty.
    """
    pred, truth = pred.cpu(), truth.cpu()
    either: NDArray[np.bool_] = np.logical_or(
        pred.numpy().any(axis=0), truth.numpy().any(axis=0)
    )  # (D, H, W)
    box = (slice(None), *bounding_box(either, margin))
    return pred[box], truth[box]


def voxel_size(spacing: Sequence[float]) -> tuple[float, float, float]:
    """The spacing as three floats in mm.

    Raises:
        ValueError: if it is not three positive, finite numbers.
    """
    sizes = [float(size) for size in spacing]
    if len(sizes) != 3 or not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"spacing must be three positive, finite numbers of mm, got {sizes}.")
    return sizes[0], sizes[1], sizes[2]


def spacing_of(*images: Any) -> tuple[float, float, float]:
    """Voxel size in mm of the first image that knows its own (a ``MetaTensor``), else 1 mm.

    Args:
        images: channel-first volumes (C, D, H, W), of any kind.
    """
    for image in images:
        if isinstance(image, MetaTensor):
            d, h, w = (float(size) for size in image.pixdim)
            return d, h, w
    return 1.0, 1.0, 1.0
