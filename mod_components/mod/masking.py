"""Blockwise 3D masking of an image on a grid of cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blockwise_mask", "cells_to_voxels", "random_mask", "voxels_to_tokens"]

ASPECT = (0.3, 3.3)  # ratio of a block's first side to each of the others
FEWEST_CELLS = 27  # below 3x3x3 cells a block is no block: cells are masked one by one
TRIES = 10  # draws of a block that fits before single cells fill what is left


def random_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Mask exactly ``round(ratio * cells)`` cells, each chosen independently.

    Args:
        grid: number of cells in each direction (3,).
        ratio: share of cells to mask, 0 to 1.
        rng: source of randomness.

    Returns:
        A boolean array of shape ``grid``, true where masked.
    """
    mask = np.zeros(math.prod(grid), dtype=bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask.reshape(tuple(grid))


def blockwise_mask(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Mask exactly ``round(ratio * cells)`` cells by cuboids of random size, shape and place.

    The 3D form of BEiT's blockwise masking (https://arxiv.org/abs/2106.08254, Algorithm 1): a
    cuboid's volume lies between 1 and what is left to mask, its aspect ratios between 0.3 and 3.3;
    its place is even over the grid, cut off at the edges.
    Grids of fewer than 27 cells are masked cell by cell.

    Args:
        grid: number of cells in each direction (3,).
        ratio: share of cells to mask, 0 to 1.
        rng: source of randomness.

    Returns:
        A boolean array of shape ``grid``, true where masked.
    """
    cells = math.prod(grid)
    if cells < FEWEST_CELLS:
        return random_mask(grid, ratio, rng)
    mask = np.zeros(tuple(grid), dtype=bool)
    left = round(ratio * cells)
    while left > 0:
        for _ in range(TRIES):
            block = _random_block(grid, left, rng)
            new = mask[block].size - int(mask[block].sum())
            if 0 < new <= left:
                mask[block] = True
                break
        else:  # nothing fits: one free cell keeps the loop going to an exact count
            free = np.flatnonzero(~mask)
            mask.flat[free[rng.integers(free.size)]] = True
            new = 1
        left -= new
    return mask


def _random_block(
    grid: Sequence[int], largest: int, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    volume = rng.uniform(1, max(1, largest))
    # log-uniform, so that 1:3 is as likely as 3:1
    ratio_1, ratio_2 = np.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), size=2))
    first = (volume * ratio_1 * ratio_2) ** (1 / 3)
    sides = rng.permutation([first, first / ratio_1, first / ratio_2])
    block = []
    for side, cells in zip(sides, grid, strict=True):
        length = min(cells, max(1, round(side)))
        # a block may overhang the edge: else cells at corners would hardly ever be masked
        start = int(rng.integers(1 - length, cells))
        block.append(slice(max(0, start), start + length))
    return block[0], block[1], block[2]


def cells_to_voxels(cells: Tensor, cell: int, size: Sequence[int]) -> Tensor:
    """Spread a mask over cells to the voxels inside them.

    Args:
        cells: masks on the grid of cells (B, 1, gd, gh, gw).
        cell: edge of a cell in voxels.
        size: (D, H, W) of the image; a last, cut-off cell is allowed.

    Returns:
        Masks (B, 1, D, H, W) of the same dtype.
    """
    for axis in (2, 3, 4):
        cells = cells.repeat_interleave(cell, dim=axis)
    return cells[:, :, : size[0], : size[1], : size[2]]


def voxels_to_tokens(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Reduce a mask over voxels to tokens: a token is masked when any of its voxels is.

    Args:
        mask: (B, 1, D, H, W), 0 or 1.
        grid: (d, h, w) of the tap's feature map.

    Returns:
        m_i as float (B, d·h·w), tokens in row-major order.
    """
    return F.adaptive_max_pool3d(mask.float(), tuple(grid)).flatten(1)


def draw_masks(
    rngs: Sequence[np.random.Generator], size: Sequence[int], cell: int, ratio: float, kind: str
) -> Tensor:
    """Draw one mask for each generator.

    Args:
        rngs: a generator for each sample.
        size: (D, H, W) of the image in voxels.
        cell: edge of a cell in voxels.
        ratio: share of cells to mask.
        kind: ``"blockwise"`` or ``"random"``.

    Returns:
        Masks on the grid of cells (B, 1, gd, gh, gw), 0 or 1.
    """
    grid = [-(-length // cell) for length in size]
    draw = {"blockwise": blockwise_mask, "random": random_mask}[kind]
    masks = np.stack([draw(grid, ratio, rng) for rng in rngs])
    return torch.from_numpy(masks).float().unsqueeze(1)
