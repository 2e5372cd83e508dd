"""Read the files of a finished evaluation: its cases, its summary and its notes."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mod_components.data.layouts import REGIONS
from mod_components.errors import DataError
from mod_components.evaluation.scores import METRICS

__all__ = ["Case", "MetricView", "Results", "read_results"]

_GROUPS = {
    "Overlap and distance": ("dice", "hd95", "nsd"),
    "Sensitivity and precision": ("sensitivity", "precision"),
    "Volumes": ("volume_truth", "volume_pred", "volume_error"),
    "Lesion by lesion": (
        *("lesion_dice", "lesion_hd95"),
        *("lesions_truth", "lesions_found", "lesions_false"),
    ),
}
_FURTHER = "Further metrics"
_TITLES = {metric.key: (metric.title, metric.unit) for metric in METRICS}


@dataclass(frozen=True)
class MetricView:
    """A metric of an evaluation and how to show it.

    Attributes:
        key: its name in the files, such as "hd95".
        title: its name for readers.
        unit: "mm", "mL" or empty.
        digits: decimals of a case's value; 0 for counts.
        group: heading under which it stands.
        regions: the regions that it was computed for.
    """

    key: str
    title: str
    unit: str
    digits: int
    group: str
    regions: tuple[str, ...]

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def skewed(self) -> bool:
        """Whether single cases lie so far out that a plot needs a logarithmic scale."""
        return self.unit == "mm"

    def show(self, value: float | None) -> str:
        """A case's value, – where it is undefined."""
        return "–" if value is None or not math.isfinite(value) else f"{value:.{self.digits}f}"

    def show_mean(self, value: float) -> str:
        """A statistic over cases: of counts with a decimal too."""
        return f"{value:.{max(self.digits, 1)}f}"


@dataclass(frozen=True)
class Case:
    """A case's values by metric and region; nan where one is undefined."""

    name: str
    values: Mapping[str, Mapping[str, float]]

    @property
    def mean_dice(self) -> float:
        """Mean over the regions whose Dice is defined; nan without any."""
        known = [value for value in self.values.get("dice", {}).values() if math.isfinite(value)]
        return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        metrics: in the order of the files.
        cases: by mean Dice, the worst first; those without a Dice last.
        summary: the statistics of each of TC, WT, ET and "mean", such as "dice_ci_low".
        notes: what the evaluation says of itself.
    """

    metrics: list[MetricView]
    cases: list[Case]
    summary: Mapping[str, Mapping[str, float]]
    notes: Mapping[str, Any] = field(default_factory=dict)


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read what an evaluation has left in its output folder.

    Args:
        folder: with ``metrics_per_case.csv`` (a row a case: ``case`` and ``<metric>_<region>``),
            ``metrics_summary.csv`` (a row a ``region``) and ``summary.json`` (``notes``). Empty
            cells are undefined values.

    Raises:
        DataError: if a file is missing, empty or damaged.
    """
    root = Path(folder)
    rows = _rows(root / "metrics_per_case.csv", "case")
    metrics = _metrics(next(iter(rows.values())))
    cases = [
        Case(name, {m.key: {r: row[f"{m.key}_{r.lower()}"] for r in m.regions} for m in metrics})
        for name, row in rows.items()
    ]
    cases.sort(key=lambda case: (math.isnan(case.mean_dice), case.mean_dice, case.name))
    return Results(metrics, cases, _rows(root / "metrics_summary.csv", "region"), _notes(root))


def _metrics(row: Mapping[str, float]) -> list[MetricView]:
    """The metrics that the columns ``<metric>_<region>`` speak of."""
    regions: dict[str, list[str]] = {}
    for column in row:
        key, _, region = column.rpartition("_")
        if key and region.upper() in REGIONS:
            regions.setdefault(key, []).append(region.upper())
    return [_view(key, tuple(found)) for key, found in regions.items()]


def _view(key: str, regions: tuple[str, ...]) -> MetricView:
    title, unit = _TITLES.get(key, (key.replace("_", " ").capitalize(), ""))
    group = next((group for group, keys in _GROUPS.items() if key in keys), _FURTHER)
    count = key.startswith("lesions_")
    return MetricView(key, title, unit, 0 if count else 1 if unit else 3, group, regions)


def _rows(path: Path, key: str) -> dict[str, dict[str, float]]:
    """Rows of a CSV file by the text in column ``key``, the rest as numbers, nan where empty."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, strict=True))
        rows = {
            line.pop(key): {column: float(cell or "nan") for column, cell in line.items()}
            for line in lines
        }
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent} has no {path.name}: give the output_dir of an evaluation."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}): evaluate again."
        ) from error
    if not rows:
        raise DataError(f"{path} has no rows: evaluate at least one case.")
    return rows


def _notes(root: Path) -> dict[str, Any]:
    path = root / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("notes") or {})
    except FileNotFoundError as error:
        raise DataError(
            f"{root} has no summary.json: give the output_dir of an evaluation."
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}): evaluate again."
        ) from error
