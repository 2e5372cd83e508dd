"""Plots of how cases are spread."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from mod_components.evaluation.distributions import plot_distribution


def columns_with_colour(picture: np.ndarray) -> np.ndarray:
    """Which columns hold something coloured, as boxes and points are and the frame is not."""
    visible = picture[..., 3] > 0.5
    return ((np.ptp(picture[..., :3], axis=2) > 0.3) & visible).any(axis=0)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_box_for_each_region_that_has_cases(logarithmic: bool) -> None:
    values = {"TC": [0.0, 2.0, 373.13], "WT": [math.nan, math.nan], "ET": [4.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = plot_distribution(values, "mm", logarithmic)
        plot_distribution({region: [math.nan] for region in values}, "", logarithmic)
    assert len(data) < 20_000
    picture = imread(io.BytesIO(data))
    assert picture[0, 0, 3] == 0  # nothing behind it: it stands on white and on black
    coloured = columns_with_colour(picture)
    runs = int((np.diff(coloured.astype(int)) == 1).sum())
    assert runs == 2
