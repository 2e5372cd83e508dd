"""Figures of a study: convergence, regions, fewer labelled cases, paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mod_components.data.records import REGIONS
from mod_components.files import write_atomically
from mod_components.study.results import (
    METRICS,
    Finished,
    by_arm,
    by_bundle,
    count_name,
    grouped,
    network_name,
)
from mod_components.study.statistics import Difference, spread
from mod_components.study.tables import SCALES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["band", "convergence", "labelled_cases", "paired", "regions", "save_figure"]

# Okabe and Ito's colours, told apart by all kinds of colour vision; the baseline is black
_COLOURS = ("#000000", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES = ("-", "--", "-.", ":")
_DPI = 110
_SMALL = 9
_ENOUGH = 3
_DODGE = 1.02  # from arm to arm on a log axis, so that whiskers stand side by side

Values = NDArray[np.float64]
Curve = Sequence[tuple[float, float]]


def convergence(runs: Sequence[Finished], arms: Sequence[str]) -> Figure:
    """Dice on the held-out cases by update and by hour: mean over runs, band from least to most.

    By hour a point stands at the mean of the hours after which the arm's runs had made its updates.

    Args:
        runs: runs of one number of labelled cases.
        arms: names of all arms of the study, the baseline first; their places give the colours.

    Returns:
        A row of two panels for each bundle.
    """
    bundles = by_bundle(runs)
    figure = _figure(9, 0.4 + 2.8 * len(bundles))
    grid = figure.subplots(len(bundles), 2, squeeze=False, sharey="row")
    for row, (bundle, own) in zip(grid, bundles.items(), strict=True):
        for arm, of_arm in by_arm(own).items():
            updates, mean, low, high = band(
                [[(p.update, 100 * p.dice) for p in run.curve] for run in of_arm]
            )
            # runs of an arm take unlike times; where all have been is a matter of updates alone
            hours = band([[(p.update, p.seconds / 3600) for p in run.curve] for run in of_arm])[1]
            style = _style(arms.index(arm))
            for axes, x in zip(row, (updates, hours), strict=True):
                axes.plot(x, mean, label=arm, markersize=3.5, linewidth=1.5, **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        for axes, unit in zip(row, ("updates", "hours of training"), strict=True):
            _frame(axes, network_name(bundle), unit, "")
        row[0].set_ylabel("mean Dice (%)", fontsize=_SMALL)
    return _with_legend(figure, arms)


def band(curves: Iterable[Curve]) -> tuple[Values, Values, Values, Values]:
    """Mean, least and most of curves where all of them have values, straight between points.

    Args:
        curves: (x, y) of each, x rising; those without a point are left out.

    Returns:
        x of every point in the common range, and mean, least and most there, (points,) each; one
        point, the mean of their last ones, where they have no range in common.
    """
    arrays = [np.array(curve, float) for curve in curves if len(curve)]
    if not arrays:
        return (np.empty(0),) * 4
    start = max(curve[0, 0] for curve in arrays)
    end = min(curve[-1, 0] for curve in arrays)
    if start > end:  # single points, of runs of unlike lengths: their means, as one
        last = np.array([curve[-1] for curve in arrays])
        y = last[:, 1:]
        return last[:, 0].mean(keepdims=True), y.mean(axis=0), y.min(axis=0), y.max(axis=0)
    every = np.unique(np.concatenate([curve[:, 0] for curve in arrays]))
    x = every[(every >= start) & (every <= end)]
    y = np.stack([np.interp(x, curve[:, 0], curve[:, 1]) for curve in arrays])
    return x, y.mean(axis=0), y.min(axis=0), y.max(axis=0)


def labelled_cases(runs: Sequence[Finished], arms: Sequence[str]) -> Figure:
    """Mean Dice by number of labelled cases: mean and standard deviation over runs.

    Args:
        runs: the runs.
        arms: names of all arms, the baseline first.

    Returns:
        A panel for each bundle.
    """
    bundles = by_bundle(runs)
    figure, panels = _panels(len(bundles))
    for axes, (bundle, own) in zip(panels, bundles.items(), strict=True):
        for arm, of_arm in by_arm(own).items():
            counts = list(grouped(of_arm).values())
            x = [_cases(group) for group in counts]
            found = [spread([100 * run.mean("dice") for run in group]) for group in counts]
            place = arms.index(arm)
            style, aside = _style(place), _DODGE ** (place - (len(arms) - 1) / 2)
            y, sd = [s.mean for s in found], [np.nan_to_num(s.sd) for s in found]
            axes.errorbar(
                np.array(x) * aside,
                y,
                sd,
                label=arm,
                markersize=4,
                linewidth=1.5,
                capsize=3,
                **style,
            )
        _frame(axes, network_name(bundle), "labelled cases", "mean Dice (%)")
        axes.set_xscale("log")  # numbers of cases double rather than step
        marks = [round(_cases(group)) for group in grouped(own).values()]
        axes.set_xticks(marks, map(str, marks))
        axes.minorticks_off()
    return _with_legend(figure, arms)


def regions(runs: Sequence[Finished], arms: Sequence[str]) -> Figure:
    """Dice of each region by arm, as bars from 0.

    Args:
        runs: runs of one number of labelled cases.
        arms: names of all arms, the baseline first.

    Returns:
        A panel for each bundle; whiskers are the standard deviation over runs.
    """
    bundles = by_bundle(runs)
    keys = {**{region: f"dice_{region.lower()}" for region in REGIONS}, "mean": "dice"}
    places = np.arange(len(keys))
    figure, panels = _panels(len(bundles))
    for axes, (bundle, own) in zip(panels, bundles.items(), strict=True):
        here = by_arm(own)
        width = 0.8 / len(here)
        for number, (arm, of_arm) in enumerate(here.items()):
            found = [spread([100 * run.mean(key) for run in of_arm]) for key in keys.values()]
            x = places + (number - (len(here) - 1) / 2) * width
            heights, sd = [s.mean for s in found], [np.nan_to_num(s.sd) for s in found]
            place = arms.index(arm)
            bars: dict[str, Any] = {"color": _style(place)["color"], "label": arm}
            bars["hatch"] = "/" * 4 * (place // len(_COLOURS)) or None
            # grey whiskers show on black bars, too
            whiskers = {"ecolor": "#999999", "capsize": 2}
            axes.bar(x, heights, 0.9 * width, yerr=sd, error_kw=whiskers, **bars)
        count = count_name(own[0].run.labelled)
        _frame(axes, f"{network_name(bundle)}, labelled: {count}", "", "Dice (%)")
        axes.set_xticks(places, list(keys))
        axes.set_ylim(0, 100)
    return _with_legend(figure, arms)


def paired(found: Sequence[Difference], arms: Sequence[str]) -> Figure:
    """Differences from the baseline as points with both intervals, and a line at zero.

    The thin line is the interval of runs and cases, the thick one Student's. Axes hold all of the
    former; the latter is cut where it is wider, as with two pairs it always is.

    Args:
        found: at least one difference.
        arms: names of all arms, the baseline first.

    Returns:
        A panel of Dice and one of HD95, with a line for each bundle, number of labelled cases and
        arm, from top to bottom.
    """
    lines = [line for line in found if line.metric == METRICS[0]]
    figure = _figure(9, 1.2 + 0.32 * len(lines))
    panels = figure.subplots(1, len(METRICS), sharey=True)
    titles = {"dice": "Dice: higher is better", "hd95": "HD95: lower is better"}
    units = {"dice": "percentage points", "hd95": "mm"}
    for axes, metric in zip(panels, METRICS, strict=True):
        own = [line for line in found if line.metric == metric]
        for place, line in enumerate(own):
            _difference(axes, place, line, _style(arms.index(line.arm)))
        axes.axvline(0, color="#666666", linewidth=1)
        reach = _reach(own)
        axes.set_xlim(-reach, reach)
        _frame(axes, titles[metric], f"arm − {arms[0]} ({units[metric]})", "")
    names = [f"{network_name(d.bundle)}, {count_name(d.labelled)}: {d.arm}" for d in lines]
    panels[0].set_yticks(range(len(lines)), names)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    return figure


def _difference(axes: Axes, place: int, line: Difference, style: Mapping[str, Any]) -> None:
    scale, colour = SCALES[line.metric], style["color"]
    axes.plot([scale * line.t_low, scale * line.t_high], [place] * 2, color=colour, lw=5, alpha=0.3)
    ends = [scale * line.both_low, scale * line.both_high]
    axes.plot(ends, [place] * 2, color=colour, linewidth=1.5, marker="|", markersize=7)
    axes.plot([scale * line.mean], [place], color=colour, marker=style["marker"], markersize=6)


def _reach(lines: Sequence[Difference]) -> float:
    """Half of an axis that holds means, ends of runs and cases, and of t where pairs are enough."""
    ends = [0.0]
    for line in lines:
        ends += [line.mean, line.both_low, line.both_high]
        ends += [line.t_low, line.t_high] if line.counted >= _ENOUGH else []
    scale = SCALES[lines[0].metric]
    most = max((abs(scale * end) for end in ends if math.isfinite(end)), default=0.0)
    return 1.1 * most or 1.0


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, without a version in it: the same figure gives the same bytes."""
    settings: dict[str, Any] = {"format": "png", "dpi": _DPI, "metadata": {"Software": None}}
    write_atomically(path, lambda file: figure.savefig(file, **settings))
    return path


def _cases(runs: Sequence[Finished]) -> float:
    """Labelled cases of runs; of folds that are not equally large, their mean."""
    return float(np.mean([run.training or run.run.labelled for run in runs]))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    columns = min(number, 3)
    rows = -(-number // columns)
    figure = _figure(max(5.0, 3.4 * columns), 0.5 + 2.8 * rows)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(number)]


def _style(place: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        # another line where colours begin again: no two arms look alike
        "linestyle": _LINES[(place + place // len(_COLOURS)) % len(_LINES)],
    }


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=_SMALL + 1)
    axes.set_xlabel(x, fontsize=_SMALL)
    if y:
        axes.set_ylabel(y, fontsize=_SMALL)
    axes.tick_params(labelsize=_SMALL)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _with_legend(figure: Figure, arms: Sequence[str]) -> Figure:
    """One legend above all panels, in the order of the arms."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    names = sorted(handles, key=arms.index)
    chosen = [handles[name] for name in names]
    entry = 0.75 + 0.08 * max(map(len, names), default=0)  # inches: a handle and its text
    columns = max(1, min(len(names), int(figure.get_figwidth() / entry)))
    figure.legend(chosen, names, loc="outside upper center", ncols=columns, fontsize=_SMALL)
    return figure
