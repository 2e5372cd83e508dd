"""Blockwise masks: counts, blocks, and their maps to voxels and tokens against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mod_components.mod.masking import (
    blockwise_mask,
    cells_to_voxels,
    draw_masks,
    random_mask,
    voxels_to_tokens,
)

GRIDS = [(8, 8, 8), (6, 6, 6), (4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 40), (9, 5, 2)]


def masked_neighbours(mask: np.ndarray) -> float:
    """Mean share of masked cells among the face neighbours of masked cells."""
    shares = []
    for cell in zip(*np.nonzero(mask), strict=True):
        near = []
        for axis in range(3):
            for step in (-1, 1):
                other = list(cell)
                other[axis] += step
                if 0 <= other[axis] < mask.shape[axis]:
                    near.append(bool(mask[tuple(other)]))
        shares.append(np.mean(near))
    return float(np.mean(shares))


@pytest.mark.parametrize("draw", [blockwise_mask, random_mask])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.75, 0.95])
def test_count_is_exact(draw: type, grid: tuple[int, int, int], ratio: float) -> None:
    expected = round(ratio * (grid[0] * grid[1] * grid[2]))
    for seed in range(15):
        mask = draw(grid, ratio, np.random.default_rng(seed))
        assert mask.shape == grid
        assert mask.dtype == bool
        assert mask.sum() == expected


def test_literal_counts() -> None:
    rng = np.random.default_rng(0)
    assert blockwise_mask((8, 8, 8), 0.6, rng).sum() == 307  # 307.2
    assert blockwise_mask((4, 4, 4), 0.6, rng).sum() == 38  # 38.4
    assert blockwise_mask((2, 2, 2), 0.6, rng).sum() == 5  # 4.8


def test_blocks_hang_together() -> None:
    rng = np.random.default_rng(1)
    grid, ratio = (8, 8, 8), 0.6
    blocks = np.mean([masked_neighbours(blockwise_mask(grid, ratio, rng)) for _ in range(30)])
    single = np.mean([masked_neighbours(random_mask(grid, ratio, rng)) for _ in range(30)])
    assert single == pytest.approx(0.6, abs=0.02)
    assert blocks > single + 0.12


def test_blocks_are_of_many_sizes_and_every_cell_has_its_turn() -> None:
    masks = np.stack([blockwise_mask((6, 6, 6), 0.6, np.random.default_rng(s)) for s in range(300)])
    share = masks.mean(0)
    assert share.min() > 0.15  # corners are hidden least, the middle most
    assert share.max() < 0.95
    assert len({mask.tobytes() for mask in masks}) == 300


def test_small_grids_are_masked_cell_by_cell() -> None:
    for seed in range(20):
        block = blockwise_mask((2, 3, 4), 0.5, np.random.default_rng(seed))
        single = random_mask((2, 3, 4), 0.5, np.random.default_rng(seed))
        assert np.array_equal(block, single)
    # and from 27 cells on they are not
    pairs = [
        (
            blockwise_mask((3, 3, 3), 0.6, np.random.default_rng(s)),
            random_mask((3, 3, 3), 0.6, np.random.default_rng(s)),
        )
        for s in range(5)
    ]
    assert not all(np.array_equal(a, b) for a, b in pairs)


def test_masks_depend_on_the_generator_alone() -> None:
    first = blockwise_mask((8, 8, 8), 0.6, np.random.default_rng([42, 1, 7]))
    np.random.seed(3)
    assert np.array_equal(first, blockwise_mask((8, 8, 8), 0.6, np.random.default_rng([42, 1, 7])))
    other = blockwise_mask((8, 8, 8), 0.6, np.random.default_rng([42, 2, 7]))
    assert not np.array_equal(first, other)


def test_cells_to_voxels_equals_a_loop_and_cuts_the_last_cell() -> None:
    cells = (torch.rand(2, 1, 2, 3, 2) < 0.5).float()
    voxels = cells_to_voxels(cells, 4, (8, 10, 5))
    assert voxels.shape == (2, 1, 8, 10, 5)
    for b, d, h, w in np.ndindex(2, 8, 10, 5):
        assert voxels[b, 0, d, h, w] == cells[b, 0, d // 4, h // 4, w // 4]


@pytest.mark.parametrize("grid", [(4, 4, 4), (2, 4, 1), (8, 8, 8)])
def test_a_token_is_masked_when_any_of_its_voxels_is(grid: tuple[int, int, int]) -> None:
    voxels = torch.zeros(2, 1, 8, 8, 8)
    voxels[0, 0, 0, 0, 0] = 1
    voxels[1] = (torch.rand(1, 8, 8, 8) < 0.1).float()
    tokens = voxels_to_tokens(voxels, grid)
    sd, sh, sw = (8 // g for g in grid)
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2])
    for b in range(2):
        for index, (d, h, w) in enumerate(np.ndindex(*grid)):
            block = voxels[
                b, 0, d * sd : (d + 1) * sd, h * sh : (h + 1) * sh, w * sw : (w + 1) * sw
            ]
            assert tokens[b, index] == float(block.any())


def test_cells_voxels_and_tokens_agree_when_they_have_one_size() -> None:
    cells = draw_masks(
        [np.random.default_rng(s) for s in range(3)], (16, 16, 16), 4, 0.6, "blockwise"
    )
    tokens = voxels_to_tokens(cells_to_voxels(cells, 4, (16, 16, 16)), (4, 4, 4))
    assert torch.equal(tokens, cells.flatten(1))
    assert tokens.sum(1).tolist() == [38, 38, 38]


def test_draw_masks_one_per_generator_with_cut_cells() -> None:
    rngs = [np.random.default_rng(s) for s in (4, 5)]
    masks = draw_masks(rngs, (20, 16, 9), 8, 0.5, "random")
    assert masks.shape == (2, 1, 3, 2, 2)  # 20/8, 16/8 and 9/8, rounded up
    for mask, seed in zip(masks, (4, 5), strict=True):
        expected = random_mask((3, 2, 2), 0.5, np.random.default_rng(seed))
        assert np.array_equal(mask[0].numpy().astype(bool), expected)
