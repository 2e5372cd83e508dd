"""Surfaces of nested regions in three dimensions, as a picture: the outer ones are glass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["VIEWS", "draw_surface"]

VIEWS = ("from the front", "from the left")
"""Where one looks from; up is superior."""

_LIGHT = np.array([-0.4, -0.8, 0.45])  # to the picture's left, to the viewer, up
_LIGHT /= np.linalg.norm(_LIGHT)
_AMBIENT = 0.35
_GLASS = 0.4
_MARGIN = 4  # voxels around the box: light is smoothed, and regions end in it
_FINEST = 1.0  # mm a pixel
_SMOOTH = 1.0  # mm; of the light alone: smoothing a region would take away what is thin

Volume = NDArray[np.float32]


def draw_surface(
    masks: Mapping[str, NDArray[np.bool_]],
    colours: Mapping[str, str],
    frame: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    view: str = VIEWS[0],
) -> NDArray[np.float32]:
    """Look at regions from outside: the first surface that a ray meets, lit from the upper left.

    Args:
        masks: regions (D, H, W) by name, the outermost first, in LPS. The innermost one that is not
            empty is opaque, those around it are glass.
        colours: of the regions, as matplotlib names colours.
        frame: what the picture must hold (D, H, W), so that several have one scale.
        spacing: edges of a voxel in mm.
        view: one of :data:`VIEWS`.

    Returns:
        A picture, (rows, columns, 3) from 0 to 1, black behind, 1 mm a pixel.

    Raises:
        ValueError: if the view is none of these, or there is no region.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
    from matplotlib.colors import to_rgb

    # the smallest box; without anything to frame, all of it
    box = (ndimage.find_objects(frame.astype(np.int8)) or [(slice(None),) * frame.ndim])[0]
    drawn: NDArray[np.float32] | None = None
    opaque = True
    for name, mask in reversed(list(masks.items())):  # from the inside out
        seen = _turned(_fine(mask[box], spacing), view)
        hit, light = _first_surface(seen)
        if drawn is None:
            drawn = np.zeros((*hit.shape, 3), np.float32)
        if not hit.any():
            continue
        alpha = (1.0 if opaque else _GLASS) * hit[..., None]
        drawn = alpha * light[..., None] * np.array(to_rgb(colours[name])) + (1 - alpha) * drawn
        opaque = False
    if drawn is None:
        raise ValueError("masks: there is no region to draw.")
    return drawn.astype(np.float32)


def _fine(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> Volume:
    """A mask on a grid of 1 mm with empty space around it: 1 inside, 0 outside."""
    padded = np.pad(mask.astype(np.float32), _MARGIN)
    zoom = [edge / _FINEST for edge in spacing]
    fine = ndimage.zoom(padded, zoom, order=0, grid_mode=True, mode="grid-constant")
    return np.asarray(fine, np.float32)


def _turned(volume: Volume, view: str) -> Volume:
    """Axes as the viewer has them: to the right of the picture, away from the viewer, up."""
    if view == VIEWS[0]:
        return volume  # left of the patient is right of the picture
    return np.ascontiguousarray(volume.transpose(1, 0, 2)[:, ::-1])


def _first_surface(volume: Volume) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Where a ray meets the volume (rows, columns), and how bright its surface is there."""
    inside = volume > 0.5  # (right, away, up)
    depth = inside.argmax(axis=1)
    hit = inside.any(axis=1)
    x, z = np.meshgrid(*(np.arange(size) for size in depth.shape), indexing="ij")
    smooth = ndimage.gaussian_filter(volume, _SMOOTH / _FINEST)
    slopes = np.stack([np.gradient(smooth, axis=a) for a in range(3)], axis=-1)
    # (right, away, up, 3) -> (right, up, 3)
    normal = -slopes[x, depth, z]
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    light = _AMBIENT + (1 - _AMBIENT) * np.clip(normal @ _LIGHT, 0, 1)
    return hit.T[::-1], light.T[::-1].astype(np.float32)
