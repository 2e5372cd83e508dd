"""Planes of a picture: which ones, and the right way up."""

from __future__ import annotations

import numpy as np

from mod_components.evaluation.canvas import cut_plane, fullest_planes, grey_values
from tests.evaluation.cases import SHAPE, brain


def test_planes_are_the_right_way_up() -> None:
    # One bright voxel each in the left, anterior, superior corner of an LPS volume.
    volume = np.zeros(SHAPE)
    volume[-1, 0, -1] = 1
    top_right, top_left = (0, -1), (0, 0)
    assert cut_plane(volume, "axial", (0, 0, SHAPE[2] - 1))[top_right] == 1
    assert cut_plane(volume, "coronal", (0, 0, 0))[top_right] == 1
    assert cut_plane(volume, "sagittal", (SHAPE[0] - 1, 0, 0))[top_left] == 1


def test_planes_hold_most_of_the_tumour() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((1, 9, 8, 7)) < 0.1
    mask[0, 6, 2, :] = mask[0, :, 2, 4] = mask[0, 6, :, 4] = True
    found = fullest_planes(np.ones((4, 9, 8, 7)), [mask])
    for axis, index in enumerate(found):
        areas = [int(np.take(mask[0], i, axis).sum()) for i in range(mask.shape[axis + 1])]
        assert areas[index] == max(areas)


def test_planes_meet_a_ring_and_two_tumours() -> None:
    volumes = np.ones((4, *SHAPE))
    d, h, w = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    radius = np.sqrt((d - 12) ** 2 + (h - 15) ** 2 + (w - 10) ** 2)
    ring = ((radius > 5) & (radius < 8))[None]
    two = np.zeros((1, *SHAPE), bool)
    two[0, 2:5, 3:6, 2:5] = two[0, 17:22, 22:27, 14:18] = True  # their mean lies in neither
    for mask in (ring, two):
        centre = fullest_planes(volumes, [mask])
        assert all(np.take(mask[0], place, axis).any() for axis, place in enumerate(centre))
    assert fullest_planes(volumes, [two]) == (19, 24, 16)


def test_planes_without_truth_without_tumour_without_brain() -> None:
    made = brain()
    volumes, label = made["image"].numpy(), made["label"].numpy() > 0
    elsewhere = np.zeros_like(label)
    elsewhere[1, 5:8, 20, 4] = True
    assert fullest_planes(volumes, [label, elsewhere]) == (15, 9, 11)
    assert fullest_planes(volumes, [label & False, elsewhere]) == (6, 20, 4)
    assert fullest_planes(volumes, [label & False]) == (12, 15, 10)
    assert fullest_planes(volumes * 0, []) == (12, 15, 10)


def test_the_scale_is_the_brains_not_the_backgrounds() -> None:
    image = brain()["image"][0].numpy()
    volume = image - 1.0  # z-scores: below 0 too
    volume[image == 0] = 0
    grey = grey_values(volume)
    assert grey[volume == 0].max() == 0
    assert (grey.min(), grey.max()) == (0, 1)
    assert grey_values(volume * 0).max() == 0
