"""Surfaces: what is in front is seen first, from where one looks."""

from __future__ import annotations

import numpy as np
import pytest

from mod_components.evaluation.surface import VIEWS, draw_surface

COLOURS = {"outer": "#0000ff", "inner": "#ff0000"}
SHAPE = (40, 30, 20)  # left, posterior, superior


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    places = np.indices(SHAPE).T - np.array(centre)
    return np.asarray(np.sqrt((places**2).sum(-1).T) < radius)


def test_size_is_that_of_the_box_in_millimetres() -> None:
    mask = ball((20, 15, 10), 6)  # 11 voxels wide
    for spacing in ((1.0, 1.0, 1.0), (2.0, 1.0, 0.5)):
        for view, across in zip(VIEWS, spacing[:2], strict=True):
            picture = draw_surface({"outer": mask}, COLOURS, mask, spacing, view)
            seen = picture.any(-1)
            high, wide = (np.ptp(np.flatnonzero(seen.any(axis))) + 1 for axis in (1, 0))
            assert wide == pytest.approx(11 * across, abs=1.5)
            assert high == pytest.approx(11 * spacing[2], abs=1.5)
            assert picture.min() == 0
            assert picture.max() <= 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)])
def test_what_is_thin_is_seen(spacing: tuple[float, float, float]) -> None:
    rim = ball((20, 15, 10), 8) & ~ball((20, 15, 10), 7)  # one voxel thick
    one = np.zeros(SHAPE, bool)
    one[5, 5, 5] = True
    for mask in (rim, one):
        seen = draw_surface({"outer": mask}, COLOURS, mask, spacing).any(-1)
        assert seen.sum() == mask.any(axis=1).sum() * spacing[0] * spacing[2]


def test_directions() -> None:
    """A part to the patient's left, in front and high up."""
    everything = np.ones(SHAPE, bool)
    mask = ball((34, 5, 16), 3)
    front, left = (draw_surface({"outer": mask}, COLOURS, everything, (1, 1, 1), v) for v in VIEWS)
    for picture, column in ((front, 0.85), (left, 0.2)):
        rows, columns = np.nonzero(picture.any(-1))
        assert rows.mean() < 0.35 * len(picture)
        assert columns.mean() / picture.shape[1] == pytest.approx(column, abs=0.1)


def test_glass_shows_what_is_in_it_and_the_innermost_hides_what_is_behind() -> None:
    outer, inner = ball((20, 15, 10), 9), ball((20, 15, 10), 4)
    picture = draw_surface({"outer": outer, "inner": inner}, COLOURS, outer, (1, 1, 1))
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    assert middle[0] > 0.2, "the inner one is seen through the outer"
    assert middle[2] > 0.05, "and the outer one is before it"
    edge = picture[picture.shape[0] // 2, picture.shape[1] // 2 - 7]
    assert edge[0] == 0
    assert edge[2] > 0


def test_the_only_region_that_is_not_empty_is_opaque() -> None:
    outer = ball((20, 15, 10), 9)
    alone = draw_surface({"outer": outer}, COLOURS, outer, (1, 1, 1))
    both = draw_surface({"outer": outer, "inner": outer & False}, COLOURS, outer, (1, 1, 1))
    np.testing.assert_array_equal(alone, both)


def test_light_comes_from_the_upper_left() -> None:
    mask = ball((20, 15, 10), 8)
    brightness = draw_surface({"outer": mask}, COLOURS, mask, (1, 1, 1))[..., 2]
    rows, columns = np.nonzero(brightness)
    row, column = int(rows.mean()), int(columns.mean())
    assert brightness[row - 4, column - 4] > 1.3 * brightness[row + 4, column + 4] > 0


def test_nothing_to_see() -> None:
    nothing = np.zeros(SHAPE, bool)
    assert not draw_surface({"outer": nothing}, COLOURS, nothing, (1, 1, 1)).any()


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(ValueError, match="from the front, from the left"):
        draw_surface({"outer": ball((9, 9, 9), 3)}, COLOURS, ball((9, 9, 9), 3), (1, 1, 1), "top")
    with pytest.raises(ValueError, match="no region"):
        draw_surface({}, COLOURS, ball((9, 9, 9), 3), (1, 1, 1))
