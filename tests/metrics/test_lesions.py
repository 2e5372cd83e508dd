"""Lesion-wise scores of cases that are worked out by hand.

Cubes of 4 × 4 × 4 = 64 mm³ count as lesions, cubes of 3 × 3 × 3 = 27 mm³ are too small.
"""

from __future__ import annotations

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from mod_components.data.layouts import REGIONS, find_layout, scan
from mod_components.metrics import LESION_HD95_MISSED, LesionScores, hd95, lesion_scores
from tests.metrics.shapes import box

SHAPE = (40, 14, 14)


def cubes(*starts: int, size: int = 4) -> Tensor:
    """A mask of cubes that start at these places of the first axis, and at 4 of the others."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    for start in starts:
        mask |= box(SHAPE, (start, 4, 4), (start + size, 4 + size, 4 + size))
    return mask


def score(pred: Tensor, truth: Tensor, spacing: tuple[float, ...] = (1, 1, 1)) -> LesionScores:
    return lesion_scores(pred[None], truth[None], spacing)[0]


def test_perfect() -> None:
    assert score(cubes(2, 25), cubes(2, 25)) == LesionScores(1.0, 0.0, 2, 2, 0)


def test_two_lesions_one_found() -> None:
    # Dice (1 + 0) / 2; HD95 (0 + 374) / 2.
    found = score(cubes(2), cubes(2, 25))
    assert found == LesionScores(0.5, 187.0, lesions=2, found=1, false=0)
    assert found.missed == 1


def test_one_false_positive_of_one_voxel() -> None:
    # One lesion found exactly, and one voxel elsewhere: Dice (1 + 0) / 2, HD95 (0 + 374) / 2.
    pred = cubes(2)
    pred[30, 6, 6] = True
    assert score(pred, cubes(2)) == LesionScores(0.5, 187.0, lesions=1, found=1, false=1)


def test_a_part_off_by_a_voxel() -> None:
    # 48 of 64 voxels overlap: Dice 96 / 128. The layers that stick out are 1 mm away, 12 + 4 of
    # each surface's 56 voxels: the 95th percentile is 1 mm.
    assert score(cubes(3), cubes(2)) == LesionScores(0.75, 1.0, lesions=1, found=1, false=0)


def test_one_prediction_spanning_two_lesions() -> None:
    # The bar, 27 × 4 × 4 = 432 voxels, counts in full for each: Dice 2 · 64 / (64 + 432).
    bar = box(SHAPE, (2, 4, 4), (29, 8, 8))
    truth = cubes(2, 25)
    got = score(bar, truth)
    one = hd95(bar[None], cubes(2)[None]).item()
    assert got.dice == pytest.approx(128 / 496)
    assert got.hd95 == pytest.approx(one, rel=1e-6)
    assert got[2:] == (2, 2, 0)


def test_two_parts_of_one_lesion_are_taken_together() -> None:
    # A bar of 20 × 4 × 4 = 320 voxels, its middle 4 layers not predicted: Dice 2 · 256 / 576.
    truth = box(SHAPE, (2, 4, 4), (22, 8, 8))
    pred = truth.clone()
    pred[10:14] = False
    got = score(pred, truth)
    assert got.dice == pytest.approx(512 / 576)
    assert got[2:] == (1, 1, 0)


@pytest.mark.parametrize("gap", [6, 7])
def test_close_pieces_are_one_lesion(gap: int) -> None:
    # Both are dilated by 3: up to a gap of 6 they meet, and one lesion of 128 voxels is half
    # found, Dice 2 · 64 / (64 + 128); farther apart, one lesion of two is missed.
    got = score(cubes(2), cubes(2, 6 + gap))
    if gap == 6:
        assert got.dice == pytest.approx(2 / 3)
        assert got[2:] == (1, 1, 0)
    else:
        assert got == LesionScores(0.5, 187.0, lesions=2, found=1, false=0)


def test_dilation_leaves_out_corners() -> None:
    # Three steps to a face or edge neighbour each reach 2 voxels along all three axes, not 3.
    truth = cubes(2)
    at_corner = {}
    for offset in (2, 3):
        pred = torch.zeros_like(truth)
        pred[5 + offset, 7 + offset, 7 + offset] = True
        at_corner[offset] = score(pred, truth)
    assert at_corner[2][2:] == (1, 1, 0)
    assert at_corner[3] == LesionScores(0.0, LESION_HD95_MISSED, lesions=1, found=0, false=1)


def test_touching_the_dilated_lesion_is_finding_it() -> None:
    # Next to the lesion without a common voxel: found, with a Dice of 0 and a distance.
    got = score(cubes(7), cubes(2))
    assert got.dice == 0
    assert got.hd95 == pytest.approx(hd95(cubes(7)[None], cubes(2)[None]).item())
    assert got[2:] == (1, 1, 0)


def test_a_tiny_lesion_does_not_count() -> None:
    tiny = cubes(25, size=3)
    truth = cubes(2) | tiny
    perfect = LesionScores(1.0, 0.0, lesions=1, found=1, false=0)
    assert score(cubes(2), truth) == perfect  # missed
    assert score(truth, truth) == perfect  # found: nor is what touches it false
    assert score(cubes(2), tiny)[2:] == (0, 0, 1)
    assert score(tiny, tiny) == LesionScores(1.0, 0.0, 0, 0, 0)
    assert score(tiny & False, tiny) == LesionScores(1.0, 0.0, 0, 0, 0)
    # 27 voxels of 8 mm³ are more than 50 mm³.
    assert score(tiny, tiny, (2, 2, 2)) == LesionScores(1.0, 0.0, 1, 1, 0)


def test_fifty_cubic_millimetres_are_too_small_and_more_is_not() -> None:
    fifty = box(SHAPE, (2, 4, 4), (4, 9, 9))
    assert score(fifty, fifty)[2] == 0
    rounded = 3 * (float(np.nextafter(np.float32(1), 2)),)  # as a header of 32-bit floats has it
    assert lesion_scores(fifty[None], fifty[None], rounded)[0].lesions == 0
    fifty[4, 4, 4] = True
    assert score(fifty, fifty)[2] == 1


def test_empty_masks() -> None:
    empty = torch.zeros(SHAPE, dtype=torch.bool)
    assert score(empty, empty) == LesionScores(1.0, 0.0, 0, 0, 0)
    missed = LESION_HD95_MISSED
    assert score(cubes(2, 25), empty) == LesionScores(0.0, missed, lesions=0, found=0, false=2)
    assert score(empty, cubes(2, 25)) == LesionScores(0.0, missed, lesions=2, found=0, false=0)


def test_diagonal_voxels_are_one_part() -> None:
    pred = torch.zeros(SHAPE, dtype=torch.bool)
    pred[30, 5, 5] = pred[31, 6, 6] = pred[33, 8, 8] = True
    assert score(pred, cubes(2)).false == 2


def test_channels_are_scored_apart_and_input_is_checked() -> None:
    pred, truth = torch.stack([cubes(2), cubes(2)]), torch.stack([cubes(2), cubes(25)])
    assert [s.dice for s in lesion_scores(pred, truth)] == [1.0, 0.0]
    with pytest.raises(ValueError, match="post-processing"):
        lesion_scores(pred + 0.5, truth.float())
    with pytest.raises(ValueError, match="three positive"):
        lesion_scores(pred, truth, (1, 1, 0))


@pytest.mark.real_data
def test_a_real_case_takes_seconds(real_data: Path) -> None:
    folder = real_data / "brats2021"
    codes = find_layout(folder).region_codes
    voxels = np.asarray(nib.load(next(c.label for c in scan(folder) if c.label)).dataobj)
    truth = torch.from_numpy(np.stack([np.isin(voxels, codes[region]) for region in REGIONS]))
    start = time.perf_counter()
    scores = lesion_scores(truth.roll(2, dims=1), truth)
    assert time.perf_counter() - start < 10
    assert all(s.lesions == s.found + s.missed and 0 < s.dice < 1 for s in scores)
