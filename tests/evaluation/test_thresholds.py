"""Thresholds: their effect is exact, and they pay or stay at 0."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mod_components.data.layouts import REGIONS
from mod_components.evaluation.thresholds import (
    NONE,
    SIZES_MM3,
    TOTALS_MM3,
    Thresholds,
    choose,
    components,
    mean_dice,
)


def blobs(rng: np.random.Generator, level: float, size: int = 20) -> np.ndarray:
    """Random nested regions TC, WT, ET (3, D, H, W) with many small components."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size, size)), 1.2)
    field = (field - field.mean()) / field.std()
    return np.stack([field > level + 0.4, field > level, field > level + 0.8])


def remove_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Component by component."""
    parts, number = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = np.zeros_like(mask)
    for part in range(1, number + 1):
        if (parts == part).sum() >= voxels:
            kept |= parts == part
    return kept


def by_hand(pred: np.ndarray, truth: np.ndarray, voxel: float, t: Thresholds) -> list[float]:
    """Dice of WT, TC, ET by doing on the masks what the table only counts."""
    smallest = {region: size / voxel for region, size in t.min_component_mm3.items()}
    whole = remove_small(pred[1], smallest["WT"])
    core = remove_small(pred[0] & whole, smallest["TC"])
    enhancing = remove_small(pred[2] & core, smallest["ET"])
    if enhancing.sum() < t.min_et_mm3 / voxel:
        enhancing[:] = False
    scores = []
    for mask, true in ((whole, truth[1]), (core, truth[0]), (enhancing, truth[2])):
        total = mask.sum() + true.sum()
        scores.append(2 * (mask & true).sum() / total if total else 1.0)
    return scores


@pytest.mark.parametrize("voxel", [1.0, 2.0])
def test_the_table_tells_what_removing_components_does(voxel: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        pred, truth = blobs(rng, 1.5), blobs(rng, 1.8)
        case = components(pred, truth, voxel)
        assert len(case["WT"].size) > 10
        for _ in range(8):
            sizes = {region: float(rng.choice([0, 2, 5, 10, 20, 40])) for region in REGIONS}
            thresholds = Thresholds(sizes, float(rng.choice([0, 50, 1e6])))
            expected = by_hand(pred, truth, voxel, thresholds)
            got = mean_dice([case], thresholds)
            assert [got[r] for r in ("WT", "TC", "ET")] == pytest.approx(expected, abs=1e-9)


def test_empty_prediction_and_truth() -> None:
    empty = np.zeros((3, 4, 4, 4), bool)
    assert mean_dice([components(empty, empty, 1.0)], NONE) == {"WT": 1.0, "TC": 1.0, "ET": 1.0}


def test_false_specks_are_removed_and_a_good_prediction_is_left_alone() -> None:
    truth = np.zeros((3, 20, 20, 20), bool)
    truth[:, 2:10, 2:10, 2:10] = True
    specks = truth.copy()
    specks[1, 15:18, 15:18, 15:18] = True  # 27 mm³ of WT outside the tumour
    thresholds = choose([components(specks, truth, 1.0)] * 3)
    assert thresholds.min_component_mm3 == {"TC": 0, "WT": 32, "ET": 0}
    assert choose([components(truth, truth, 1.0)] * 3) == NONE
    assert choose([components(specks, specks, 1.0)] * 3) == NONE


def test_a_few_enhancing_voxels_in_a_tumour_without_enhancement() -> None:
    truth = np.zeros((3, 16, 16, 16), bool)
    truth[:2, 2:10, 2:10, 2:10] = True
    pred = truth.copy()
    pred[2, 2:4, 2:4, 2] = pred[2, 7:9, 7:9, 7] = True  # two pieces of 4 mm³
    thresholds = choose([components(pred, truth, 1.0)])
    assert mean_dice([components(pred, truth, 1.0)], thresholds)["ET"] == 1.0
    assert thresholds.min_component_mm3["ET"] in SIZES_MM3
    assert thresholds.min_et_mm3 in TOTALS_MM3
