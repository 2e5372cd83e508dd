"""HD95 and surface Dice against plain loops, against MONAI, and on real cases."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

from mod_components.data.layouts import REGIONS, find_layout, scan
from mod_components.metrics import HD95_MISSED, hd95, nsd, surface_scores
from mod_components.metrics.surface import hd95_of_distances
from tests.metrics.shapes import (
    SPACING,
    blobs_at_the_border,
    box,
    empty_and_full,
    naive_distances,
    random_blobs,
)


def monais(pred: Tensor, truth: Tensor, spacing: tuple[float, ...], tolerance: float) -> Tensor:
    """MONAI's HD95 and surface Dice of masks (C, D, H, W), as (2, C)."""
    settings = {"include_background": True, "spacing": list(spacing)}
    pair = pred[None].float(), truth[None].float()
    distance = compute_hausdorff_distance(*pair, percentile=95, **settings)
    surface = compute_surface_dice(*pair, class_thresholds=[tolerance] * len(pred), **settings)
    return torch.cat([distance, surface])


def test_scores_are_those_of_a_brute_force_loop_in_mm() -> None:
    pred, truth = random_blobs((8, 9, 7), 8).chunk(2)
    distances, surfaces = [], []
    for p, t in zip(pred.numpy(), truth.numpy(), strict=True):
        there, back = naive_distances(p, t, SPACING)
        distances.append(max(np.percentile(there, 95), np.percentile(back, 95)))
        surfaces.append(np.mean(np.array(there + back) <= 1.4 + 1e-9))
    torch.testing.assert_close(hd95(pred, truth, SPACING), Tensor(distances))
    torch.testing.assert_close(nsd(pred, truth, SPACING, tolerance=1.4), Tensor(surfaces))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (2.0, 2.0, 2.0)])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.1])
def test_scores_are_monais_wherever_monais_are_defined(
    spacing: tuple[float, float, float], tolerance: float
) -> None:
    pred, truth = blobs_at_the_border()  # the crop must not show
    scores = torch.stack(surface_scores(pred, truth, spacing, tolerance))
    expected = monais(pred, truth, spacing, tolerance)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_noise_over_the_whole_volume_is_monais() -> None:
    pred, truth = (torch.rand(2, 3, 20, 21, 22) > 0.9).unbind()
    scores = torch.stack(surface_scores(pred, truth, SPACING, 1.0))
    torch.testing.assert_close(scores, monais(pred, truth, SPACING, 1.0), rtol=0, atol=1e-6)


def test_single_voxels_in_opposite_corners() -> None:
    pred = box((6, 6, 6), (0, 0, 0), (1, 1, 1))[None]
    truth = box((6, 6, 6), (5, 5, 5), (6, 6, 6))[None]
    spacing = (1.0, 2.0, 3.0)
    assert hd95(pred, truth, spacing).item() == pytest.approx(5 * 14**0.5, rel=1e-6)
    assert nsd(pred, truth, spacing, tolerance=18.70).item() == 0
    assert nsd(pred, truth, spacing, tolerance=18.71).item() == 1


def test_a_slab_one_voxel_away_is_within_a_millimetre() -> None:
    # Slabs of 3 and 4 layers of 5 × 5: three sides agree, and layer 3 is 1 mm from layer 2.
    truth = box((8, 5, 5), (0, 0, 0), (3, 5, 5))[None]
    pred = box((8, 5, 5), (0, 0, 0), (4, 5, 5))[None]
    assert nsd(pred, truth).item() == 1
    assert nsd(pred, truth, (float(np.nextafter(np.float32(1), 2)), 1, 1)).item() == 1
    assert nsd(pred, truth, (1.001, 1, 1)).item() < 1
    # Surfaces: 25 + 16 + 25 = 66 voxels of the truth, 25 + 16 + 16 + 25 = 82 of the prediction.
    # In both: layers 0 and 1 and the rim of layer 2, 25 + 16 + 16. Half a millimetre forgives
    # no other: 57 of each.
    expected = 2 * 57 / (66 + 82)
    assert nsd(pred, truth, tolerance=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_empty_masks_follow_the_brats_convention() -> None:
    pred, truth = empty_and_full()  # both empty, truth empty, pred empty, full
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distances, surfaces = surface_scores(pred, truth, SPACING)
    torch.testing.assert_close(distances, torch.tensor([0.0, HD95_MISSED, HD95_MISSED, 0.0]))
    assert surfaces.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_no_masks_have_no_scores() -> None:
    distances, surfaces = surface_scores(torch.zeros(0, 4, 5, 6), torch.zeros(0, 4, 5, 6))
    assert distances.shape == surfaces.shape == (0,)


def test_more_surface_voxels_than_torch_takes() -> None:
    count = 2**24 + 10  # 100 values, each the more often the smaller it is
    values = torch.arange(count).float().div(count).square().mul(100).floor()
    counts = np.bincount(values.int().numpy())
    expected = np.searchsorted(np.cumsum(counts), 0.95 * (count - 1), side="right")
    assert hd95_of_distances((values, torch.zeros(1))) == expected
    few = torch.rand(1001)
    assert hd95_of_distances((few, few)) == pytest.approx(np.quantile(few.double(), 0.95))


@pytest.mark.parametrize("score", [hd95, nsd])
def test_wrong_input_is_refused(score: object) -> None:
    good = torch.zeros(3, 4, 4, 4)
    assert callable(score)
    with pytest.raises(ValueError, match=r"\(C, D, H, W\)"):
        score(good, good[:2])
    with pytest.raises(ValueError, match="truth must hold 0 and 1"):
        score(good, good.int() + 4)
    for spacing in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0, np.inf, 1.0)):
        with pytest.raises(ValueError, match="three positive"):
            score(good, good, spacing)
    with pytest.raises(ValueError, match="tolerance"):
        nsd(good, good, tolerance=-1)


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "shift"), [("brats2021", 3), ("brats2018_2mm", 1)])
def test_real_masks_score_as_in_monai(real_data: Path, folder: str, shift: int) -> None:
    codes = find_layout(real_data / folder).region_codes
    image = nib.load(next(case.label for case in scan(real_data / folder) if case.label))
    voxels = np.asarray(image.dataobj)
    truth = torch.from_numpy(np.stack([np.isin(voxels, codes[region]) for region in REGIONS]))
    pred = truth.roll(shift, dims=2)
    spacing = tuple(float(size) for size in image.header.get_zooms())
    scores = torch.stack(surface_scores(pred, truth, spacing))
    torch.testing.assert_close(scores, monais(pred, truth, spacing, 1.0), rtol=0, atol=1e-6)
