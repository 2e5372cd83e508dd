"""How a metric is spread over the cases of an evaluation, as a small plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_distribution"]

# Darker than the outlines on scans, and greys between both, to be read on white and on black.
_COLOURS = {"TC": "#c98a00", "WT": "#2f8fe0", "ET": "#e8386a"}
_GREY = "#7d838c"
_JITTER = 0.16


def plot_distribution(
    values: Mapping[str, Sequence[float]], unit: str = "", logarithmic: bool = False
) -> bytes:
    """Boxes (quartiles, whiskers to 1.5 times their distance) with every case as a point.

    Args:
        values: for each region one value a case; nan is left out.
        unit: stands at the axis.
        logarithmic: whether the axis is logarithmic from 1 on; below it is linear and holds 0.

    Returns:
        A PNG with a transparent background.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    cases = {region: _known(of_region) for region, of_region in values.items()}
    for place, (region, known) in enumerate(cases.items()):
        if known.size:
            _box(axes, place, known, _COLOURS.get(region, _GREY))
    everything = np.concatenate([np.zeros(1), *cases.values()])
    if logarithmic:
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        axes.set_ylim(-0.1, max(1.6 * everything.max(), 1))
        axes.yaxis.set_major_formatter("{x:g}")
    elif np.all(everything == np.round(everything)):
        axes.locator_params(axis="y", integer=True)
    _frame(axes, list(values), unit)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    return file.getvalue()


def _known(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, float)
    return array[np.isfinite(array)]


def _box(axes: Axes, place: int, known: np.ndarray, colour: str) -> None:
    """A box at ``place`` and a point for each of its cases, spread across so that all show."""
    line = {"color": colour, "linewidth": 1.3}
    axes.boxplot(
        known,
        positions=[place],
        widths=0.5,
        showfliers=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops={"color": colour, "linewidth": 2.4},
    )
    across = place + np.random.default_rng(place).uniform(-_JITTER, _JITTER, known.size)
    size = 14 if known.size <= 100 else 5
    axes.scatter(across, known, s=size, color=colour, alpha=0.55, linewidths=0, zorder=3)


def _frame(axes: Axes, regions: Sequence[str], unit: str) -> None:
    axes.set_xticks(range(len(regions)), regions)
    axes.set_xlim(-0.6, len(regions) - 0.4)
    axes.set_ylabel(unit, color=_GREY, fontsize=10)
    axes.tick_params(colors=_GREY, labelsize=10)
    axes.grid(axis="y", color=_GREY, alpha=0.25, linewidth=0.6)
    axes.set_facecolor("none")
    for name, side in axes.spines.items():
        side.set_color(_GREY)
        side.set_visible(name in ("left", "bottom"))
