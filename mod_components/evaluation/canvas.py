"""The canvas of a picture: three planes of a head, in scale, as radiologists look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PLANES",
    "crop_to_head",
    "cut_plane",
    "fullest_planes",
    "grey_values",
    "make_canvas",
    "show_plane",
]

PLANES = ("axial", "coronal", "sagittal")
_MARGIN = 10


def crop_to_head(volumes: np.ndarray, *masks: np.ndarray) -> list[np.ndarray]:
    """Cut off the empty space around the brain, but for a margin.

    Args:
        volumes: images, 0 outside the brain, (C, D, H, W).
        masks: what must stay inside too, (R, D, H, W) each.

    Returns:
        All of them, cut to one box.
    """
    occupied = np.any([part.any(0) for part in (volumes != 0, *masks)], axis=0)  # (D, H, W)
    box: list[slice] = [slice(None)]
    for axis, size in enumerate(occupied.shape):
        where = np.flatnonzero(occupied.any(tuple({0, 1, 2} - {axis})))
        if where.size:
            box.append(slice(max(where[0] - _MARGIN, 0), min(where[-1] + 1 + _MARGIN, size)))
    return [part[tuple(box)] for part in (volumes, *masks)]


def fullest_planes(volumes: np.ndarray, masks: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Along each axis the slice with most of the first mask that is not empty, else of the brain.

    A voxel counts once for each region it is in: the core draws the planes towards itself. Each
    axis has its own slice, so that a ring's hole or the gap between two tumours is never shown.

    Args:
        volumes: images, 0 outside the brain, (C, D, H, W).
        masks: regions (R, D, H, W), the ones to look at first standing first.

    Returns:
        Indices along D, H and W.
    """
    for mask in (*masks, (volumes != 0).any(0, keepdims=True)):
        if mask.any():
            counts = mask.sum(0)  # (D, H, W)
            d, h, w = (_fullest(counts.sum(tuple({0, 1, 2} - {axis}))) for axis in range(3))
            return d, h, w
    d, h, w = (size // 2 for size in volumes.shape[1:])
    return d, h, w


def _fullest(areas: np.ndarray) -> int:
    """Index of the largest value, the middle one of several."""
    best = np.flatnonzero(areas == areas.max())
    return int(best[best.size // 2])


def grey_values(volume: np.ndarray) -> np.ndarray:
    """Grey values 0 to 1 between the brain's 1st and 99.5th percentile, black outside (0)."""
    brain = volume[volume != 0]
    if brain.size == 0:
        return np.zeros_like(volume)
    low, high = np.percentile(brain[:: max(brain.size // 200_000, 1)], (1, 99.5))
    grey = np.clip((volume - low) / max(high - low, 1e-6), 0, 1)
    return np.where(volume != 0, grey, 0)


def cut_plane(volume: np.ndarray, plane: str, centre: tuple[int, int, int]) -> np.ndarray:
    """A slice of (D, H, W) as rows and columns of a picture, drawn from the top."""
    d, h, w = centre
    if plane == "axial":
        return volume[:, :, w].T  # rows to posterior, columns to the left
    if plane == "coronal":
        return volume[:, h, ::-1].T  # rows to inferior, columns to the left
    return volume[d, :, ::-1].T  # rows to inferior, columns to posterior


def _pixel(plane: str, spacing: tuple[float, float, float]) -> tuple[float, float]:
    """Height and width in mm of a pixel of a plane."""
    d, h, w = spacing
    return {"axial": (h, d), "coronal": (w, d), "sagittal": (w, h)}[plane]


def make_canvas(
    shape: tuple[int, ...],
    spacing: tuple[float, float, float],
    channels: Sequence[str],
    lines: int,
) -> tuple[Figure, np.ndarray]:
    """A black figure and its axes (images, planes), all planes on one scale of inches a mm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    d, h, w = (size * mm for size, mm in zip(shape, spacing, strict=True))
    wide = len(channels) > 2
    if wide:
        rows, columns = list(PLANES), list(channels)
        heights, widths, panel = [h, w, w], [max(d, h)] * len(columns), 3.2
    else:
        rows, columns = list(channels), list(PLANES)
        heights, widths, panel = [max(h, w)] * len(rows), [d, d, h], 4.0
    scale = panel / max(h, w)  # inches a mm
    left, right, bottom, top = 0.45, 0.1, 0.5, 0.4 + 0.22 * lines  # inches
    size = (scale * sum(widths) + left + right, scale * sum(heights) + bottom + top)
    # Constrained or tight layouts would undo the common scale of the planes.
    figure = Figure(figsize=size, dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        gridspec_kw={
            "width_ratios": widths,
            "height_ratios": heights,
            "left": left / size[0],
            "right": 1 - right / size[0],
            "bottom": bottom / size[1],
            "top": 1 - top / size[1],
            "wspace": 0.02,
            "hspace": 0.02,
        },
    )
    for axes, name in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(name, color="white", fontsize=12)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, color="white", fontsize=12, pad=4)
    for axes in grid.flat:
        axes.set_anchor("N")  # else less high planes would take their titles down with them
    return figure, grid.T if wide else grid


def show_plane(
    axes: Axes, grey: np.ndarray, plane: str, spacing: tuple[float, float, float]
) -> None:
    height, width = _pixel(plane, spacing)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=height / width, interpolation="bilinear")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    left, right = ("A", "P") if plane == "sagittal" else ("R", "L")
    top = "A" if plane == "axial" else "S"
    for x, y, letter in ((0.02, 0.5, left), (0.98, 0.5, right), (0.5, 0.98, top)):
        axes.text(
            x,
            y,
            letter,
            color="#b0b0b0",
            fontsize=10,
            transform=axes.transAxes,
            ha={0.02: "left", 0.5: "center", 0.98: "right"}[x],
            va="top" if y > 0.9 else "center",
        )
