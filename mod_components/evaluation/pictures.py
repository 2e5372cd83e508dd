"""Pictures of one case: three planes through the tumour, with true and predicted outlines."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage

from mod_components.data.records import CHANNELS, REGIONS
from mod_components.evaluation.canvas import (
    PLANES,
    crop_to_head,
    cut_plane,
    fullest_planes,
    grey_values,
    make_canvas,
    show_plane,
)
from mod_components.metrics import LESION_MINIMUM, SAME_SIZE, dice, hd95, spacing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "draw_case", "picture_bytes", "to_lps"]

COLOURS = {"WT": "#3fa9ff", "TC": "#ffd23f", "ET": "#ff3d6e"}
"""Outlines, the widest region first."""

# In points. TC and ET often share an edge: the inner line is thinner, so that both show.
_WIDTHS = {"WT": 2.2, "TC": 3.4, "ET": 1.8}
# A prediction's dashes vanish on the true line where both agree; the thin dark dashes in their
# gaps do not. Lengths in points, widths and brightness as parts of the true line's.
_DASH, _GAP, _DARK_DASH = 4.5, 3.5, 2.7
_DASH_WIDTH, _DARK_WIDTH, _DARK = 0.75, 0.45, 0.2

_TRUTH, _PREDICTION = "truth", "prediction"
_MM3_PER_ML = 1000.0


def draw_case(
    image: torch.Tensor,
    pred: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    title: str = "",
    channels: Sequence[str] = ("FLAIR", "T1ce"),
    *,
    distances: bool = False,
) -> Figure:
    """Draw one case, without a display and without pyplot's global state.

    The axial, coronal and sagittal planes that hold most of the true tumour (of the predicted one
    where there is no other, of the brain where there is none). True outlines are solid and
    predicted ones dashed, with dark dashes in the gaps: a solid line with dark dashes on it is
    where both agree. The caption counts what is wrong and in none of the planes: predicted parts
    that touch no true tumour, and true ones of more than 50 mm³ that no predicted one touches.

    Volumes are taken to be LPS: the first axis runs to the patient's left, the second to
    posterior, the third to superior; the left of the picture is the patient's right, as
    radiologists look. Up to two images stand in rows, more of them in columns.

    Args:
        image: T1ce, T1, T2 and FLAIR, (4, D, H, W), 0 outside the brain.
        pred: predicted TC, WT and ET, binary, (3, D, H, W); ``None`` where there is none.
        label: true TC, WT and ET, of the same shape; ``None`` where there is none.
        title: stands over the picture, with the Dice of each region where both masks are there.
        channels: names of the images to show, in order.
        distances: whether the caption gives HD95 (mm) too; it takes a second for a large case.

    Returns:
        A matplotlib figure with an Agg canvas.

    Raises:
        ValueError: if the shapes do not fit, a mask is not binary where both are given, or
            ``channels`` are not among the four.
    """
    _check(image, pred, label, channels)
    spacing = spacing_of(image, label, pred)
    lines = [title] if title else []
    if pred is not None and label is not None:
        lines.append(_scores("Dice", dice(pred, label), 3))
        if distances:
            lines.append(_scores("HD95 (mm)", hd95(pred, label, spacing), 1))
    given = {name: m for name, m in ((_TRUTH, label), (_PREDICTION, pred)) if m is not None}
    volumes, *cropped = crop_to_head(_array(image), *(_array(mask) > 0 for mask in given.values()))
    masks = dict(zip(given, cropped, strict=True))
    centre = fullest_planes(volumes, cropped)
    if len(masks) == 2:
        lines += _unseen(masks[_PREDICTION], masks[_TRUTH], centre, spacing)
    figure, grid = make_canvas(volumes.shape[1:], spacing, channels, len(lines))
    for axes_of_image, name in zip(grid, channels, strict=True):
        shown = grey_values(volumes[CHANNELS.index(name)])
        for axes, plane in zip(axes_of_image, PLANES, strict=True):
            show_plane(axes, cut_plane(shown, plane, centre), plane, spacing)
            for name_of_mask, mask in masks.items():
                _outline(axes, mask, name_of_mask, plane, centre)
    _caption(figure, lines, list(masks))
    return figure


def picture_bytes(figure: Figure, kind: str = "png", dpi: float | None = None) -> bytes:
    """A figure as the bytes of a picture file.

    Args:
        figure: from :func:`draw_case`.
        kind: "png", "jpeg", "pdf", "svg" or another format of matplotlib's.
        dpi: pixels an inch; ``None`` for the figure's own.
    """
    file = io.BytesIO()
    settings: dict[str, Any] = {}  # those of one format are refused by others
    if kind in ("jpeg", "jpg"):
        # At JPEG's usual halved colour resolution the thin outlines would be blurred.
        settings["pil_kwargs"] = {"quality": 80, "subsampling": 0, "optimize": True}
    figure.savefig(
        file,
        format=kind,
        dpi=dpi or figure.dpi,
        facecolor=figure.get_facecolor(),
        **settings,
    )
    return file.getvalue()


def to_lps(volume: torch.Tensor) -> torch.Tensor:
    """A volume (C, D, H, W) with its axes turned to LPS, as :func:`draw_case` takes it.

    Args:
        volume: a ``MetaTensor`` is turned by its affine and left as it is itself; a plain tensor
            does not know its orientation and is given back.
    """
    if not isinstance(volume, MetaTensor):
        return volume
    fresh = MetaTensor(volume.as_tensor(), affine=volume.affine)
    return Orientation("LPS", labels=None)(fresh)


def _check(
    image: torch.Tensor,
    pred: torch.Tensor | None,
    label: torch.Tensor | None,
    channels: Sequence[str],
) -> None:
    if image.ndim != 4 or image.shape[0] != len(CHANNELS):
        raise ValueError(f"image must be (4, D, H, W), got {tuple(image.shape)}.")
    for name, mask in (("pred", pred), ("label", label)):
        if mask is not None and mask.shape != (len(REGIONS), *image.shape[1:]):
            raise ValueError(
                f"{name} must be (3, D, H, W) on the grid of the image {tuple(image.shape)}, "
                f"got {tuple(mask.shape)}."
            )
    if not channels or not set(channels) <= set(CHANNELS):
        raise ValueError(f"channels must be among {', '.join(CHANNELS)}, got {list(channels)}.")


def _array(tensor: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(tensor.detach()).float().cpu().numpy()


def _strokes(name: str, colour: str, width: float) -> list[dict[str, Any]]:
    """Settings of the lines that make up an outline: one for the truth, two for a prediction."""
    if name == _TRUTH:
        return [{"color": colour, "linewidth": width, "linestyle": "solid"}]
    from matplotlib.colors import to_rgb

    wide, thin, period = width * _DASH_WIDTH, width * _DARK_WIDTH, _DASH + _GAP
    start = _DASH + (_GAP - _DARK_DASH) / 2  # in the middle of the gap
    # Dashes are measured in widths of the line.
    dash = (0, (_DASH / wide, _GAP / wide))
    dark = ((period - start) / thin, (_DARK_DASH / thin, (period - _DARK_DASH) / thin))
    shade = tuple(_DARK * part for part in to_rgb(colour))
    return [
        {"color": colour, "linewidth": wide, "linestyle": dash},
        {"color": shade, "linewidth": thin, "linestyle": dark},
    ]


def _outline(
    axes: Axes, masks: np.ndarray, name: str, plane: str, centre: tuple[int, int, int]
) -> None:
    """Outlines of the regions (3, D, H, W) of truth or prediction in a plane."""
    for place, (region, colour) in enumerate(COLOURS.items()):
        mask = cut_plane(masks[REGIONS.index(region)], plane, centre)
        # there is no line, and matplotlib warns, or refuses what is one voxel wide
        if not mask.any() or mask.all() or min(mask.shape) < 2:
            continue
        for stroke in _strokes(name, colour, _WIDTHS[region]):
            axes.contour(
                mask.astype(float),
                levels=[0.5],
                colors=[stroke["color"]],
                linestyles=[stroke["linestyle"]],
                linewidths=stroke["linewidth"],
                zorder=2 + place,  # truth and prediction of a region lie on each other
            )


def _unseen(
    pred: np.ndarray,
    truth: np.ndarray,
    centre: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> list[str]:
    """Lines of the caption on parts of masks (3, D, H, W) that are wrong and in no plane."""
    lines = []
    voxel = math.prod(spacing)
    # As lesions are counted: true ones above a size, false ones of any.
    for name, mask, other, least in (
        ("False", pred, truth, 0.0),
        ("Missed", truth, pred, LESION_MINIMUM),
    ):
        sizes = _parts_apart(mask, other, centre) * voxel  # mm³
        sizes = sizes[sizes > least * (1 + SAME_SIZE)]
        if sizes.size:
            largest = sizes.max() / _MM3_PER_ML
            volume = f"{largest:.2f}" if largest >= 0.01 else "under 0.01"
            lines.append(
                f"{name} parts outside these planes: {sizes.size}, the largest {volume} mL"
            )
    return lines


def _parts_apart(masks: np.ndarray, others: np.ndarray, centre: tuple[int, int, int]) -> np.ndarray:
    """Voxels of each part of masks (3, D, H, W) that meets neither the others nor a plane, (n,)."""
    d, h, w = centre
    parts, _ = ndimage.label(np.any(masks, axis=0), ndimage.generate_binary_structure(3, 3))
    sizes = np.bincount(parts.ravel())
    for seen in (parts[np.any(others, axis=0)], parts[d], parts[:, h], parts[:, :, w]):
        sizes[np.unique(seen)] = 0
    return sizes[1:][sizes[1:] > 0]


def _scores(name: str, scores: torch.Tensor, digits: int) -> str:
    """A line of the caption from a score for each of ``REGIONS``."""
    values = dict(zip(REGIONS, scores.tolist(), strict=True))
    return f"{name}   " + "   ".join(f"{r} {values[r]:.{digits}f}" for r in COLOURS)


def _caption(figure: Figure, lines: Sequence[str], names: Sequence[str]) -> None:
    """Title and scores above, legend below."""
    from matplotlib.lines import Line2D

    inches = figure.get_size_inches()[1]
    if lines:
        figure.suptitle(
            "\n".join(lines), color="white", fontsize=13, y=1 - 0.1 / inches, va="top"
        ).set_parse_math(False)  # a case's id may hold dollar signs
    if not names:
        return
    handles: dict[str, Any] = {
        region: Line2D([], [], color=colour, linewidth=2) for region, colour in COLOURS.items()
    }
    for name in names:
        strokes = _strokes(name, "white", _WIDTHS["WT"])
        handles[name] = tuple(Line2D([], [], **stroke) for stroke in strokes)
    if len(names) == 2:
        handles["both"] = tuple(line for name in names for line in handles[name])
    figure.legend(
        handles=list(handles.values()),
        labels=list(handles),
        loc="lower center",
        ncols=len(handles),
        handlelength=2.6,
        frameon=False,
        labelcolor="white",
    )
