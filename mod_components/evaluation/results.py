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

from mod_components.data.records import REGIONS
from mod_components.errors import DataError
from mod_components.evaluation.scores import METRICS

__all__ = ["Case", "MetricView", "Results", "note_text", "read_results", "read_table"]

PER_CASE = "metrics_per_case.csv"
UNDEFINED = "–"

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
_SMALL_ML = 10
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
        """A case's value, – where it is undefined; small volumes with one more decimal."""
        if value is None or not math.isfinite(value):
            return UNDEFINED
        return self._rounded(value, value, self.digits)

    def show_mean(self, value: float, mean: float | None = None) -> str:
        """A statistic over cases: of counts with a decimal too; as many as ``mean`` beside it."""
        return self._rounded(value, value if mean is None else mean, max(self.digits, 1))

    def _rounded(self, value: float, like: float, digits: int) -> str:
        if self.unit == "mL" and abs(like) < _SMALL_ML:
            digits += 1
        return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 makes 0 of -0


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
    rows = read_table(root / PER_CASE, "case")
    metrics = _metrics(next(iter(rows.values())))
    cases = [
        Case(name, {m.key: {r: row[f"{m.key}_{r.lower()}"] for r in m.regions} for m in metrics})
        for name, row in rows.items()
    ]
    cases.sort(key=lambda case: (math.isnan(case.mean_dice), case.mean_dice, case.name))
    summary = read_table(root / "metrics_summary.csv", "region")
    return Results(metrics, cases, summary, _notes(root))


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


def read_table(path: Path, key: str) -> dict[str, dict[str, float]]:
    """Rows of a CSV file that an evaluation has written.

    Args:
        path: the file, in UTF-8.
        key: the column of the rows' names, such as "case".

    Returns:
        Values by column, by row; an empty cell is nan.

    Raises:
        DataError: if the file is missing or can't be read, has no column ``key`` or no rows, or a
            row is there twice, is cut short or too long, or has a cell that is not a number.
    """
    rows: dict[str, dict[str, float]] = {}
    for line in _lines(path, key):
        name = line.pop(key)
        if not name:
            raise DataError(f"{path}: a row without a {key}. Remove it, or evaluate again.")
        if name in rows:
            raise DataError(f"{path}: {name} is there twice. Remove one of its rows.")
        if None in line or None in line.values():
            raise DataError(
                f"{path}: the row of {name} has too {'many' if None in line else 'few'} cells. "
                "Was the file cut short or edited? Evaluate again."
            )
        rows[name] = {
            column: _number(cell, f"{path}: {column} of {name}") for column, cell in line.items()
        }
    if not rows:
        raise DataError(f"{path}: no {key} in it. Evaluate at least one case.")
    return rows


def _lines(path: Path, key: str) -> list[dict[str, str]]:
    """Cells of every row by column; what csv makes of rows of another length is left in."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark first
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            lines = list(reader)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file. Give a folder that an evaluation has written."
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}). "
            "Save it as CSV in UTF-8, or evaluate again."
        ) from error
    if key not in columns:
        raise DataError(
            f"{path}: no column {key!r}. Give the file as an evaluation has written it, in UTF-8 "
            "and with commas between the cells."
        )
    return lines


def _number(cell: str, where: str) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        raise DataError(
            f"{where} is {cell!r}, not a number. Correct it, or evaluate again."
        ) from None


def note_text(value: Any) -> str:
    """A note's value to read: yes or no, six digits of a fraction, – for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return UNDEFINED
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _notes(root: Path) -> dict[str, Any]:
    path = root / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("notes") or {})
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file. Give a folder that an evaluation has written."
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}). Evaluate again."
        ) from error
