"""Overlap and volume against the plain formulas, and the conventions for empty masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mod_components.metrics import dice, precision, sensitivity, volume, volume_error
from tests.metrics.shapes import SPACING, empty_and_full, random_blobs

NAN = float("nan")


def test_scores_are_the_plain_formulas() -> None:
    masks = random_blobs((9, 8, 7), 6)
    pred, truth = masks.chunk(2)
    p, t = (m.numpy().reshape(3, -1).astype(int) for m in (pred, truth))
    both = (p * t).sum(1)
    voxel = 0.7 * 1.0 * 3.0 / 1000
    for got, expected in (
        (dice(pred, truth), 2 * both / (p.sum(1) + t.sum(1))),
        (sensitivity(pred, truth), both / t.sum(1)),
        (precision(pred, truth), both / p.sum(1)),
        (volume(pred, SPACING), p.sum(1) * voxel),
        (volume_error(pred, truth, SPACING), (p.sum(1) - t.sum(1)) * voxel),
    ):
        torch.testing.assert_close(got, torch.tensor(np.asarray(expected), dtype=torch.float32))


def test_a_smaller_prediction_has_a_negative_volume_error() -> None:
    pred, truth = torch.zeros(1, 10, 10, 10), torch.ones(1, 10, 10, 10)
    assert volume(truth).item() == pytest.approx(1.0)  # 1,000 mm³
    assert volume_error(pred, truth).item() == pytest.approx(-1.0)
    assert volume_error(truth, pred, (2, 2, 2)).item() == pytest.approx(8.0)


def test_empty_masks_follow_the_brats_convention() -> None:
    pred, truth = empty_and_full()  # both empty, truth empty, pred empty, full
    for score, expected in (
        (dice, [1.0, 0.0, 0.0, 1.0]),
        (sensitivity, [1.0, NAN, 0.0, 1.0]),
        (precision, [1.0, 0.0, NAN, 1.0]),
    ):
        torch.testing.assert_close(score(pred, truth), Tensor(expected), equal_nan=True)


@pytest.mark.parametrize("score", [dice, sensitivity, precision, volume_error])
def test_wrong_masks_are_refused(score: object) -> None:
    good = torch.zeros(3, 4, 4, 4)
    assert callable(score)
    with pytest.raises(ValueError, match=r"\(C, D, H, W\)"):
        score(good, good[:2])
    with pytest.raises(ValueError, match="post-processing"):
        score(good + 0.3, good)
