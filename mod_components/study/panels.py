"""Held-out cases as every arm of a study segments them: a plane each (as Fig. 3), and surfaces."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mod_components.data import read_folder
from mod_components.data.records import CHANNELS, REGIONS
from mod_components.errors import UserError
from mod_components.evaluation.canvas import crop_to_head, cut_plane, fullest_planes, grey_values
from mod_components.evaluation.pictures import COLOURS
from mod_components.evaluation.surface import VIEWS, draw_surface
from mod_components.evaluation.view import load_case
from mod_components.metrics import spacing_of
from mod_components.study.results import Finished, by_arm, grouped
from mod_components.study.run import prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TRUTH", "Shown", "have_predictions", "load_shown", "planes", "surfaces"]

TRUTH = "truth"
_QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}
_ALPHA = 0.55
_INCHES = 2.1

Volume = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Shown:
    """One held-out case with what each arm made of it, cut to the head.

    Attributes:
        case: the case's id.
        why: why this case: its place among the baseline's Dice.
        flair: the FLAIR image, (D, H, W), 0 outside the brain, in LPS.
        masks: regions (3, D, H, W) of the truth and of each arm, by name.
        dice: mean Dice of the case's regions (0 to 1), by arm.
        spacing: edges of a voxel in mm.
    """

    case: str
    why: str
    flair: Volume
    masks: Mapping[str, Masks]
    dice: Mapping[str, float]
    spacing: tuple[float, float, float]


def have_predictions(study: str | os.PathLike[str], runs: Sequence[Finished]) -> bool:
    """Whether the label maps that :func:`load_shown` would show are there.

    Args:
        study: the study's folder.
        runs: runs of one bundle, those of the baseline first.
    """
    chosen = _runs_of_one_pair(runs)
    return all(
        prediction(Path(study) / run.run.folder, case).is_file()
        for run in chosen
        for case in _cases(chosen[0])
    )


def load_shown(
    study: str | os.PathLike[str], runs: Sequence[Finished], dataset_dir: str | os.PathLike[str]
) -> list[Shown]:
    """The cases at the quartiles of the baseline's Dice, as the arms segment them.

    The baseline alone chooses: no arm is shown at its best. Of the runs, those with the fewest
    labelled cases and the first fold and seed are taken.

    Args:
        study: the study's folder, in which the runs' label maps lie.
        runs: runs of one bundle, those of the baseline first.
        dataset_dir: folder of the data set, which has images and true label maps.

    Returns:
        Up to three cases; none where data set or label maps are not there any more.
    """
    if not have_predictions(study, runs):
        return []
    chosen = _runs_of_one_pair(runs)
    wanted = _cases(chosen[0])
    try:
        layout, records = read_folder(dataset_dir)
    except UserError:
        return []
    known = {record.case: record for record in records}
    shown = []
    for case, why in wanted.items():
        paths = {run.run.arm: prediction(Path(study) / run.run.folder, case) for run in chosen}
        record = known.get(case)
        if record is None or record.label is None:
            return []
        volumes = {arm: load_case(record, layout, path) for arm, path in paths.items()}
        first = volumes[chosen[0].run.arm]
        masks = {TRUTH: first["label"], **{arm: own["pred"] for arm, own in volumes.items()}}
        image, *cropped = crop_to_head(
            np.asarray(first["image"], np.float32),
            *(np.asarray(mask) > 0 for mask in masks.values()),
        )
        shown.append(
            Shown(
                case=case,
                why=why,
                flair=image[CHANNELS.index("FLAIR")],
                masks=dict(zip(masks, cropped, strict=True)),
                dice={run.run.arm: run.by_case("dice")[case] for run in chosen},
                spacing=spacing_of(first["image"]),
            )
        )
    return shown


def planes(shown: Sequence[Shown]) -> Figure:
    """The axial plane with most of the true tumour: a row a case, the truth and then the arms.

    Args:
        shown: at least one case.

    Returns:
        A figure with each region filled in its colour over FLAIR, and each arm's mean Dice.
    """
    names = list(shown[0].masks)
    figure, grid = _grid(len(shown), names)
    for row, case in zip(grid, shown, strict=True):
        centre = fullest_planes(case.flair[None], [case.masks[TRUTH]])
        grey = cut_plane(grey_values(case.flair), "axial", centre)
        for axes, name in zip(row, names, strict=True):
            axes.imshow(_filled(grey, case.masks[name], centre))
            axes.set_aspect(case.spacing[1] / case.spacing[0])
            _name(axes, case, name)
        row[0].set_ylabel(f"{case.why}\n{case.case}", color="white", fontsize=8)
    return figure


def surfaces(shown: Shown) -> Figure:
    """The tumour in three dimensions (as Fig. 5): whole tumour as glass, core and enhancing in it.

    Args:
        shown: the case.

    Returns:
        A figure with a row for each direction of view.
    """
    names = list(shown.masks)
    frame = np.any(list(shown.masks.values()), axis=(0, 1))  # (D, H, W): one box for all
    figure, grid = _grid(len(VIEWS), names)
    for row, view in zip(grid, VIEWS, strict=True):
        for axes, name in zip(row, names, strict=True):
            masks = {region: shown.masks[name][REGIONS.index(region)] for region in COLOURS}
            axes.imshow(draw_surface(masks, COLOURS, frame, shown.spacing, view))
            _name(axes, shown, name)
        row[0].set_ylabel(view, color="white", fontsize=8)
    return figure


def _runs_of_one_pair(runs: Sequence[Finished]) -> list[Finished]:
    """One run of each arm that has one, alike in cases, fold and seed, the baseline's first."""
    baseline = runs[0]
    fewest = next(iter(grouped(runs).values()))
    pair = next((run.run.pair for run in fewest if run.run.arm == baseline.run.arm), None)
    return [run for arm in by_arm(fewest).values() for run in arm if run.run.pair == pair]


def _cases(baseline: Finished) -> dict[str, str]:
    ordered = sorted(baseline.by_case("dice").items(), key=lambda item: (item[1], item[0]))
    found: dict[str, str] = {}
    for why, part in _QUARTILES.items():
        found.setdefault(ordered[round(part * (len(ordered) - 1))][0], why)
    return found


def _filled(
    grey: NDArray[np.float64], masks: Masks, centre: tuple[int, int, int]
) -> NDArray[np.float64]:
    """A plane in grey with the regions in their colours, (rows, columns, 3) from 0 to 1."""
    from matplotlib.colors import to_rgb

    drawn = np.repeat(grey[..., None], 3, axis=-1)
    for region, colour in COLOURS.items():
        inside = cut_plane(masks[REGIONS.index(region)], "axial", centre)
        drawn[inside] = (1 - _ALPHA) * grey[inside, None] + _ALPHA * np.array(to_rgb(colour))
    return drawn


def _grid(rows: int, names: Sequence[str]) -> tuple[Figure, NDArray[np.object_]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    size = (_INCHES * len(names) + 0.5, (_INCHES + 0.25) * rows + 0.7)
    figure = Figure(figsize=size, dpi=110, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    grid: NDArray[np.object_] = figure.subplots(rows, len(names), squeeze=False)
    for axes in grid.flat:
        axes.set_facecolor("black")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, color="white", fontsize=9)
    lines = [Line2D([], [], color=colour, linewidth=5) for colour in COLOURS.values()]
    figure.legend(
        lines,
        list(COLOURS),
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
        labelcolor="white",
        fontsize=9,
    )
    return figure, grid


def _name(axes: Axes, shown: Shown, name: str) -> None:
    if name != TRUTH:
        axes.set_xlabel(f"Dice {100 * shown.dice[name]:.1f} %", color="white", fontsize=8)
