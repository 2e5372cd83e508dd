"""Masks are checked, cropped to what they hold, and know the size of their voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mod_components.metrics import binary_masks, crop_to_masks, spacing_of
from mod_components.metrics.masks import bounding_box
from tests.metrics.shapes import SPACING, box, random_blobs


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_any_type_are_the_same(dtype: torch.dtype) -> None:
    masks = random_blobs((6, 5, 4), 4)
    pred, truth = binary_masks(MetaTensor(masks.to(dtype)), masks.to(dtype))
    for mask in (pred, truth):
        assert type(mask) is torch.Tensor
        assert torch.equal(mask, masks)


@pytest.mark.parametrize("wrong", [0.3, 2.0, -1.0, float("nan"), float("inf")])
def test_one_wrong_voxel_is_enough(wrong: float) -> None:
    good = torch.zeros(3, 4, 4, 4)
    good[0, 1] = 1
    bad = good.clone()
    bad[2, 3, 3, 3] = wrong
    with pytest.raises(ValueError, match="pred must hold 0 and 1 only"):
        binary_masks(bad, good)
    with pytest.raises(ValueError, match="truth must hold 0 and 1 only"):
        binary_masks(good, bad)


def test_the_box_holds_the_mask_and_its_margin() -> None:
    mask = box((9, 8, 7), (2, 0, 5), (4, 3, 6)).numpy()
    assert bounding_box(mask) == (slice(2, 4), slice(0, 3), slice(5, 6))
    assert bounding_box(mask, margin=3) == (slice(0, 7), slice(0, 6), slice(2, 7))
    for blob in random_blobs((9, 8, 7), 5).numpy():
        voxels = np.argwhere(blob)
        inside = bounding_box(blob)
        assert [s.start for s in inside] == voxels.min(0).tolist()
        assert [s.stop for s in inside] == (voxels.max(0) + 1).tolist()


def test_one_box_holds_all_channels_of_both() -> None:
    pred = torch.stack([box((9, 9, 9), (1, 4, 4), (2, 5, 5)), box((9, 9, 9), (3, 3, 3), (6, 5, 5))])
    truth = torch.zeros_like(pred)
    truth[1, 4, 4, 6] = True
    small_pred, small_truth = crop_to_masks(pred, truth, margin=1)
    assert small_pred.shape == small_truth.shape == (2, 7, 4, 6)
    assert torch.equal(small_pred, pred[:, 0:7, 2:6, 2:8])
    assert torch.equal(small_truth, truth[:, 0:7, 2:6, 2:8])
    empty = torch.zeros_like(pred)
    assert crop_to_masks(empty, empty, margin=3)[0].shape == (2, 0, 0, 0)


def test_spacing_comes_from_the_first_image_that_has_one() -> None:
    plain = torch.zeros(1, 2, 2, 2)
    image = MetaTensor(plain, affine=torch.diag(torch.tensor([-0.7, -1.0, 3.0, 1.0])))
    assert spacing_of(plain, image) == pytest.approx(SPACING)
    assert spacing_of(plain) == (1.0, 1.0, 1.0)
