"""Overlap and volume of binary masks, channel by channel.

Where both masks are empty they agree: Dice, sensitivity and precision are 1. Where one is, Dice is
0; the sensitivity to a truth of nothing, and the precision of a prediction of nothing, are not
defined, and are nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mod_components.metrics.masks import binary_masks, count, voxel_size

__all__ = ["dice", "precision", "sensitivity", "volume", "volume_error"]

_MM3_PER_ML = 1000.0


def dice(pred: Tensor, truth: Tensor) -> Tensor:
    """Dice of binary masks, channel by channel.

    Two empty masks agree (1); an empty and a non-empty one do not (0).

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.

    Returns:
        (C,), float32, on the device of ``pred``.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, or a mask is not binary.
    """
    pred, truth = binary_masks(pred, truth)
    overlap = count(pred & truth)
    total = count(pred) + count(truth)
    return torch.where(total > 0, 2.0 * overlap / total.clamp(min=1), 1.0).float()


def sensitivity(pred: Tensor, truth: Tensor) -> Tensor:
    """The part of the truth that is predicted, channel by channel.

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.

    Returns:
        (C,), float32, on the device of ``pred``: 1 where both are empty, nan where only the truth
        is.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, or a mask is not binary.
    """
    pred, truth = binary_masks(pred, truth)
    return _part(count(pred & truth), count(truth), count(pred))


def precision(pred: Tensor, truth: Tensor) -> Tensor:
    """The part of the prediction that is true, channel by channel.

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.

    Returns:
        (C,), float32, on the device of ``pred``: 1 where both are empty, nan where only the
        prediction is.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, or a mask is not binary.
    """
    pred, truth = binary_masks(pred, truth)
    return _part(count(pred & truth), count(pred), count(truth))


def _part(overlap: Tensor, whole: Tensor, other: Tensor) -> Tensor:
    """``overlap / whole``; 1 where neither mask has a voxel, nan where only the other one has."""
    undefined = torch.where(other > 0, torch.nan, 1.0)
    return torch.where(whole > 0, overlap / whole.clamp(min=1), undefined).float()


def volume(masks: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Volume of binary masks in mL, channel by channel.

    Args:
        masks: masks of 0 and 1 (or bool), (C, D, H, W).
        spacing: size of a voxel in mm along D, H and W.

    Returns:
        (C,), float32, on the device of ``masks``.

    Raises:
        ValueError: if the masks are not four-dimensional or not binary, or ``spacing`` is not
            three positive numbers.
    """
    masks, _ = binary_masks(masks, masks)
    return (count(masks) * (math.prod(voxel_size(spacing)) / _MM3_PER_ML)).float()


def volume_error(pred: Tensor, truth: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Volume of the prediction less that of the truth in mL, channel by channel.

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.
        spacing: size of a voxel in mm along D, H and W.

    Returns:
        (C,), float32, on the device of ``pred``; negative where too little is predicted.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, a mask is not binary, or
            ``spacing`` is not three positive numbers.
    """
    pred, truth = binary_masks(pred, truth)
    voxels = count(pred) - count(truth)
    return (voxels * (math.prod(voxel_size(spacing)) / _MM3_PER_ML)).float()
