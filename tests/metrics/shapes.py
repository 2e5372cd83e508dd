"""Small masks to score, and loops that score them slowly."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

SPACING = (0.7, 1.0, 3.0)


def box(shape: tuple[int, int, int], start: tuple[int, ...], stop: tuple[int, ...]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def random_blobs(shape: tuple[int, int, int], count: int) -> Tensor:
    """Masks (count, D, H, W) of a few random boxes each."""
    rng = np.random.default_rng(3)
    masks = torch.zeros(count, *shape, dtype=torch.bool)
    for mask in masks:
        for _ in range(3):
            start = [int(rng.integers(0, s - 2)) for s in shape]
            stop = [int(rng.integers(a + 1, s + 1)) for a, s in zip(start, shape, strict=True)]
            mask |= box(shape, tuple(start), tuple(stop))
    return masks


def blobs_at_the_border() -> tuple[Tensor, Tensor]:
    """Two masks (18, 30, 24, 20) each: far from, at and across the border of the volume."""
    small = random_blobs((12, 10, 8), 6)
    masks = torch.zeros(18, 30, 24, 20, dtype=torch.bool)
    masks[:6, 9:21, 7:17, 6:14] = small
    masks[6:12, :12, :10, :8] = small
    masks[12:, -12:, -10:, -8:] = small
    return masks, masks.roll(5, dims=0)


def empty_and_full() -> tuple[Tensor, Tensor]:
    """Predictions and truths (4, 4, 5, 5): both empty, truth empty, pred empty, full."""
    empty, full = torch.zeros(4, 5, 5), torch.ones(4, 5, 5)
    return torch.stack([empty, full, empty, full]), torch.stack([empty, empty, full, full])


def naive_surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels with at least one of six neighbours outside, in mm, (n, 3)."""
    points = []
    for voxel in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = list(voxel)
            other[axis] += step
            inside = all(0 <= o < s for o, s in zip(other, mask.shape, strict=True))
            if not inside or not mask[tuple(other)]:
                points.append(np.array(voxel) * spacing)
                break
    return np.array(points)


def naive_distances(
    pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """Distances in mm from the surface of pred to that of truth, and back."""
    a, b = naive_surface(pred, spacing), naive_surface(truth, spacing)
    there = [float(min(np.linalg.norm(q - p) for q in b)) for p in a]
    back = [float(min(np.linalg.norm(q - p) for q in a)) for p in b]
    return there, back
