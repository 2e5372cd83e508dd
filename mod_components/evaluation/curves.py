"""Curves of several runs side by side, from the CSV files that they wrote."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from mod_components.errors import DataError

__all__ = ["plot_curves", "read_curves"]

Curve = list[tuple[int, float]]

PANELS = {
    "segmentation loss": ("train.csv", "loss_seg"),
    "mean Dice on the validation cases": ("validation.csv", "val_mean_dice"),
    "token loss (nats)": ("train.csv", "loss_token"),
    "class loss (nats)": ("train.csv", "loss_class"),
    "reconstruction loss": ("train.csv", "loss_recon"),
    "marginal entropy of the token teacher (nats)": ("train.csv", "token_marginal_entropy"),
}


def read_curves(output_dir: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read a run's curves.

    Args:
        output_dir: the run's ``output_dir``, with ``train.csv`` and perhaps ``validation.csv``.

    Returns:
        For each panel that the run has, its values by epoch.

    Raises:
        DataError: when there is no ``train.csv``.
    """
    folder = Path(output_dir)
    if not (folder / "train.csv").is_file():
        raise DataError(f"{folder} has no train.csv: give the output_dir (eval) of a training.")
    curves = {}
    for panel, (name, column) in PANELS.items():
        path = folder / name
        rows = []
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row.get(column)]
        if rows:
            curves[panel] = [(int(row["epoch"]), float(row[column])) for row in rows]
    return curves


def plot_curves(
    runs: Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str]
) -> dict[str, dict[str, Curve]]:
    """Draw the curves of several runs into one PNG.

    Args:
        runs: output folders by the name that the legend gives them.
        path: the picture to write.

    Returns:
        The curves drawn, by run and panel.

    Raises:
        DataError: when there is no run, or one has no curves.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not runs:
        raise DataError("there is no run to draw: give NAME=FOLDER for each.")
    curves = {name: read_curves(folder) for name, folder in runs.items()}
    panels = [panel for panel in PANELS if any(panel in run for run in curves.values())]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        for number, (name, run) in enumerate(curves.items()):
            if panel in run:
                epochs, values = zip(*run[panel], strict=True)
                axes.plot(epochs, values, marker=".", color=f"C{number}", label=name)
        axes.set_title(panel, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # no version in it
    return curves
