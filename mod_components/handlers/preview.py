"""A picture of one validation case after each validation: truth and prediction in three planes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from mod_components.files import write_atomically
from mod_components.metrics import REGIONS, dice, spacing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANNELS = {"FLAIR": 3, "T1ce": 0}
"""Rows of the picture: images and their channel."""

COLOURS = {"WT": "#3fa9ff", "TC": "#ffd23f", "ET": "#ff3d6e"}
"""Outlines, the widest region first."""

# TC and ET often share an edge: the inner line is thinner, so that both show.
_WIDTHS = {"WT": 1.4, "TC": 2.6, "ET": 1.1}

_PLANES = ("axial", "coronal", "sagittal")
_MARGIN = 10
_STYLES: tuple[tuple[Literal["solid", "dashed"], str], ...] = (
    ("solid", "truth"),
    ("dashed", "prediction"),
)


class Preview:
    """Draws validation cases into ``<output_dir>/previews/epoch_0003.png``.

    Axial, coronal and sagittal planes through the centre of the true tumour (of the brain where
    there is none), on FLAIR and T1ce, with true outlines solid and predicted ones dashed. Volumes
    are taken to be LPS: the first axis runs to the patient's left, the second to posterior, the
    third to superior; the left of the picture is the patient's right, as radiologists look.

    Needs ``image`` (4, D, H, W) and binary ``pred`` and ``label`` (3, D, H, W) in
    ``engine.state.output``, and ``case`` in ``engine.state.batch`` (the title; without it, the
    place in the validation set), each a list of dicts as MONAI's evaluators leave them. With
    several processes only the first one's cases are drawn.

    Args:
        output_dir: folder in which ``previews`` is made.
        case: id of the case to draw; ``None`` for the first ones.
        max_cases: how many to draw where ``case`` is ``None``. More than one carry the case's
            id in their file names.

    Raises:
        ValueError: if ``max_cases`` is less than 1.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        case: str | None = None,
        max_cases: int = 1,
    ) -> None:
        if max_cases < 1:
            raise ValueError(f"max_cases must be at least 1, got {max_cases}.")
        self.folder = Path(output_dir) / "previews"
        self.case = case
        self.max_cases = 1 if case is not None else max_cases
        self._drawn: set[str] = set()
        self._seen = 0

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: a MONAI evaluator with ``decollate=True``.
        """
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _started(self, engine: Engine) -> None:
        self._drawn, self._seen = set(), 0

    def _iteration_completed(self, engine: Engine) -> None:
        if len(self._drawn) >= self.max_cases or idist.get_rank() != 0:
            return
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list):
            raise TypeError("Preview needs an evaluator with decollate=True.")
        for data, item in zip(batch, output, strict=True):
            self._seen += 1
            case = str(data.get("case", f"case {self._seen}"))
            wanted = self.case in (None, case) and case not in self._drawn
            if wanted and len(self._drawn) < self.max_cases:
                self._drawn.add(case)
                self._draw(engine.state.epoch, case, item)

    def _draw(self, epoch: int, case: str, item: Mapping[str, Any]) -> None:
        name = f"epoch_{epoch:04d}"
        if self.max_cases > 1:
            name += "_" + re.sub(r"[^\w.-]", "_", case)
        figure = draw_case(
            item["image"], item["pred"], item["label"], title=f"{case}   ·   epoch {epoch}"
        )
        write_atomically(
            self.folder / f"{name}.png",
            lambda file: figure.savefig(file, format="png", facecolor="black"),
        )


def draw_case(
    image: torch.Tensor, pred: torch.Tensor, label: torch.Tensor, title: str = ""
) -> Figure:
    """Draw one case, without a display and without pyplot's global state.

    Args:
        image: T1ce, T1, T2 and FLAIR, (4, D, H, W), 0 outside the brain.
        pred: predicted TC, WT and ET, binary, (3, D, H, W).
        label: true TC, WT and ET, of the same shape.
        title: stands over the picture, with the Dice of each region.

    Returns:
        A matplotlib figure with an Agg canvas.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if image.ndim != 4 or image.shape[0] != 4 or label.shape != (3, *image.shape[1:]):
        raise ValueError(
            "image must be (4, D, H, W) and label (3, D, H, W), "
            f"got {tuple(image.shape)} and {tuple(label.shape)}."
        )
    scores = dict(zip(REGIONS, dice(pred, label).tolist(), strict=True))
    spacing = spacing_of(image, label)
    volumes, truth, guess = _crop(_array(image), _array(label) > 0, _array(pred) > 0)
    centre = _centre(truth, volumes)
    figure, grid = _canvas(volumes.shape[1:], spacing)
    for axes_row, (name, channel) in zip(grid, CHANNELS.items(), strict=True):
        shown = _window(volumes[channel])
        for axes, plane in zip(axes_row, _PLANES, strict=True):
            _show(axes, _cut(shown, plane, centre), plane, spacing)
            for mask, style in zip((truth, guess), ("solid", "dashed"), strict=True):
                _outline(axes, mask, style, plane, centre)
        axes_row[0].set_ylabel(name, color="white", fontsize=13)
    _caption(figure, title, scores)
    return figure


def _array(tensor: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(tensor.detach()).float().cpu().numpy()


def _crop(volumes: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """All of them without the empty space around the brain, but for a margin."""
    occupied = np.any([part.any(0) for part in (volumes != 0, *masks)], axis=0)  # (D, H, W)
    box: list[slice] = [slice(None)]
    for axis, size in enumerate(occupied.shape):
        where = np.flatnonzero(occupied.any(tuple({0, 1, 2} - {axis})))
        if where.size:
            box.append(slice(max(where[0] - _MARGIN, 0), min(where[-1] + 1 + _MARGIN, size)))
    return tuple(part[tuple(box)] for part in (volumes, *masks))


def _centre(truth: np.ndarray, volumes: np.ndarray) -> tuple[int, int, int]:
    """Voxel in the centre of the true tumour, else of the brain, else of the volume."""
    for mask in (truth.any(0), (volumes != 0).any(0)):
        if mask.any():
            d, h, w = (round(float(axis.mean())) for axis in np.nonzero(mask))
            return d, h, w
    d, h, w = (size // 2 for size in volumes.shape[1:])
    return d, h, w


def _window(volume: np.ndarray) -> np.ndarray:
    """Grey values 0 to 1 between the brain's 1st and 99.5th percentile, black outside (0)."""
    brain = volume[volume != 0]
    if brain.size == 0:
        return np.zeros_like(volume)
    low, high = np.percentile(brain[:: max(brain.size // 200_000, 1)], (1, 99.5))
    grey = np.clip((volume - low) / max(high - low, 1e-6), 0, 1)
    return np.where(volume != 0, grey, 0)


def _cut(volume: np.ndarray, plane: str, centre: tuple[int, int, int]) -> np.ndarray:
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


def _canvas(
    shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> tuple[Figure, np.ndarray]:
    """A black figure and its axes (2, 3), each plane as wide as it is in mm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    d, h, w = (size * mm for size, mm in zip(shape, spacing, strict=True))
    widths, height = [d, d, h], max(h, w)
    panel = 4.0 / height  # inches a mm
    # Constrained or tight layouts would undo the common scale of the planes.
    figure = Figure(figsize=(panel * sum(widths) + 0.6, 2 * 4.0 + 1.3), dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    total = figure.get_size_inches()
    grid = figure.subplots(
        2,
        len(_PLANES),
        gridspec_kw={
            "width_ratios": widths,
            "left": 0.45 / total[0],
            "right": 1 - 0.1 / total[0],
            "bottom": 0.5 / total[1],
            "top": 1 - 0.75 / total[1],
            "wspace": 0.02,
            "hspace": 0.02,
        },
    )
    return figure, grid


def _show(axes: Axes, grey: np.ndarray, plane: str, spacing: tuple[float, float, float]) -> None:
    height, width = _pixel(plane, spacing)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=height / width, interpolation="bilinear")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    left, right, top = ("A", "P", "S") if plane == "sagittal" else ("R", "L", "S")
    marks = ((0.02, 0.5, left), (0.98, 0.5, right), (0.5, 0.98, "A" if plane == "axial" else top))
    for x, y, letter in marks:
        axes.text(
            x,
            y,
            letter,
            color="#9a9a9a",
            fontsize=10,
            transform=axes.transAxes,
            ha={0.02: "left", 0.5: "center", 0.98: "right"}[x],
            va="top" if y > 0.9 else "center",
        )


def _outline(
    axes: Axes, masks: np.ndarray, style: str, plane: str, centre: tuple[int, int, int]
) -> None:
    """Outlines of the regions (3, D, H, W) in a plane."""
    for region, colour in COLOURS.items():
        mask = _cut(masks[REGIONS.index(region)], plane, centre)
        if mask.any() and not mask.all():  # else there is no line, and matplotlib warns
            axes.contour(
                mask.astype(float),
                levels=[0.5],
                colors=colour,
                linestyles=style,
                linewidths=_WIDTHS[region],
            )


def _caption(figure: Figure, title: str, scores: dict[str, float]) -> None:
    """Title with Dice above, legend below."""
    from matplotlib.lines import Line2D

    values = "   ".join(f"{region} {scores[region]:.3f}" for region in COLOURS)
    inches = figure.get_size_inches()[1]
    figure.suptitle(
        f"{title}\nDice   {values}", color="white", fontsize=13, y=1 - 0.1 / inches, va="top"
    )
    lines = [
        Line2D([], [], color=colour, linewidth=2, label=region)
        for region, colour in COLOURS.items()
    ]
    lines += [
        Line2D([], [], color="white", linewidth=1.5, linestyle=style, label=label)
        for style, label in _STYLES
    ]
    figure.legend(
        handles=lines, loc="lower center", ncols=len(lines), frameon=False, labelcolor="white"
    )
