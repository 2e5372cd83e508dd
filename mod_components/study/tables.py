"""Tables of a study, as Markdown to read and as CSV to compute with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_components.data.records import REGIONS
from mod_components.handlers.tables import write_csv
from mod_components.study.results import (
    METRICS,
    Finished,
    StudyResults,
    by_arm,
    count_name,
    grouped,
    network_name,
    thread_name,
)
from mod_components.study.speed import catch_ups, costs, levels
from mod_components.study.statistics import Difference, Spread, spread

__all__ = [
    "FIGURES",
    "SCALES",
    "SCORE_HEADER",
    "TITLES",
    "Row",
    "Table",
    "catch_up_table",
    "cost_table",
    "count_table",
    "difference_table",
    "level_table",
    "progress_table",
    "score_table",
    "show",
]

UNDEFINED = "–"
SCALES = {"dice": 100, "hd95": 1}
"""Dice is shown in %, HD95 in mm."""
TITLES = {"dice": "Dice (%)", "hd95": "HD95 (mm)"}
FIGURES = [f"{m}{part}" for m in METRICS for part in (*(f"_{r.lower()}" for r in REGIONS), "")]
"""Columns of the paper's tables, by the names that a finished run's ``mean`` takes."""
SCORE_HEADER = [f"{metric} {part}" for metric in ("Dice", "HD95") for part in (*REGIONS, "avg")]

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: name of its CSV file, without the ending.
        title: heading.
        note: what a reader must know of it.
        header: headings of the columns to read.
        cells: lines to read.
        rows: lines to compute with, values by column; nan where undefined.
    """

    name: str
    title: str
    note: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    rows: Sequence[Row]

    def markdown(self) -> list[str]:
        """Lines of Markdown: heading, note and table; numbers to the right."""
        numeric = [column for column in range(len(self.header)) if self._is_numeric(column)]
        rule = ["---:" if column in numeric else "---" for column in range(len(self.header))]
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        return [*lines, *(f"| {' | '.join(line)} |" for line in (self.header, rule, *self.cells))]

    def write(self, folder: Path) -> Path:
        """Write the CSV file; undefined values are empty cells."""
        path = folder / f"{self.name}.csv"
        rows = [{key: _known(value) for key, value in row.items()} for row in self.rows]
        write_csv(path, list(rows[0]) if rows else [], rows)
        return path

    def _is_numeric(self, column: int) -> bool:
        texts = [line[column] for line in self.cells if line[column] not in ("", UNDEFINED, "all")]
        return all(text.lstrip("+-[<")[:1].isdigit() for text in texts)


def show(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number to read: – where it is undefined, and never a zero with a minus."""
    if not math.isfinite(value):
        return UNDEFINED
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def progress_table(results: StudyResults) -> Table:
    """How many runs of each network and arm are finished, of how many planned."""
    rows: list[Row] = []
    for bundle in results.plan.bundles:
        for arm in results.plan.arms:
            own = (bundle, arm)
            planned = sum((run.bundle, run.arm) == own for run in results.planned)
            done = sum((found.run.bundle, found.run.arm) == own for found in results.runs)
            row = {"network": network_name(bundle), "arm": arm}
            rows.append({**row, "finished": done, "planned": planned})
    cells = [[str(value) for value in row.values()] for row in rows]
    return Table("progress", "Runs", "", list(rows[0]), cells, rows)


def score_table(runs: Sequence[Finished], name: str, title: str) -> Table:
    """Dice and HD95 of every region, by network, number of labelled cases and arm.

    Args:
        runs: at least one run.
        name: name of its file.
        title: what it is of.
    """
    cells, rows = [], []
    for (bundle, labelled), group in grouped(runs).items():
        for arm, own in by_arm(group).items():
            spreads = {figure: _scaled(own, figure) for figure in FIGURES}
            texts = [_spread_text(spreads[figure]) for figure in FIGURES]
            where = [network_name(bundle), count_name(labelled), arm]
            cells.append([*where, str(len(own)), *texts])
            row: Row = {"network": where[0], "arm": arm, "labelled": labelled}
            rows.append({**row, "runs": len(own), **_columns(spreads)})
    note = (
        "Dice in %, HD95 in mm: mean ± standard deviation over runs (folds and seeds) of the mean "
        "over held-out cases; avg is the mean of a case's three regions."
    )
    header = ["network", "labelled", "arm", "runs", *SCORE_HEADER]
    return Table(name, title, note, header, cells, rows)


def count_table(runs: Sequence[Finished]) -> Table:
    """Mean Dice of the three regions by number of labelled cases, network and arm."""
    found: dict[tuple[str, str], dict[int, Spread]] = {}
    rows: list[Row] = []
    for (bundle, labelled), group in grouped(runs).items():
        for arm, own in by_arm(group).items():
            value = found.setdefault((bundle, arm), {})[labelled] = _scaled(own, "dice")
            row: Row = {"network": network_name(bundle), "arm": arm, "labelled": labelled}
            rows.append({**row, "runs": len(own), **_columns({"dice": value})})
    order = [labelled for labelled in sorted({run.run.labelled for run in runs}) if labelled]
    order += [0] if any(not run.run.labelled for run in runs) else []
    nothing = Spread(0, math.nan, math.nan)
    cells = [
        [network_name(bundle), arm, *(_spread_text(own.get(count, nothing)) for count in order)]
        for (bundle, arm), own in found.items()
    ]
    note = "Mean ± standard deviation over runs; columns are numbers of labelled cases."
    header = ["network", "arm", *map(count_name, order)]
    title = "Dice (%) by number of labelled cases"
    return Table("labelled_cases", title, note, header, cells, rows)


def difference_table(found: Sequence[Difference], baseline: str, name: str = "paired") -> Table:
    """Paired differences from the baseline: all figures in the file, mean Dice and HD95 to read."""
    cells, rows = [], []
    for line in found:
        scale = SCALES[line.metric.split("_")[0]]
        scaled = {
            key: scale * getattr(line, key)
            for key in ("mean", "t_low", "t_high", "both_low", "both_high")
        }
        where = [network_name(line.bundle), count_name(line.labelled), line.arm]
        if line.metric in METRICS:
            intervals = [_interval(scaled[f"{k}_low"], scaled[f"{k}_high"]) for k in ("t", "both")]
            p = [_show_p(line.p), _show_p(line.p_holm)]
            numbers = [str(line.pairs), show(scaled["mean"], sign=True), *intervals, *p]
            cells.append([*where, TITLES[line.metric], *numbers])
        row: Row = {"network": where[0], "labelled": line.labelled, "arm": line.arm}
        row |= {"metric": line.metric, "pairs": line.pairs, "counted": line.counted}
        row |= {"cases": line.cases, **scaled}
        rows.append({**row, "p": line.p, "p_holm": line.p_holm})
    note = (
        f"Arm − {baseline} over pairs of runs of the same network, number of labelled cases, fold "
        "and seed, in percentage points and mm. The t interval (95 %) is over folds, each counted "
        "once with the mean of its pairs, or over pairs where there is one fold: it says where the "
        "mean would lie with other folds, or with other seeds on these held-out cases; the second "
        "interval (bootstrap of folds, pairs and cases) with other cases, too. One pair has no t "
        "interval, and its second interval knows of other cases alone; of a handful of pairs the "
        "second interval is too narrow, so read both. p is of the paired t test, Holm adjusts it "
        "for the number of arms."
    )
    columns = ["network", "labelled", "arm", "figure", "pairs", "difference"]
    columns += ["t interval", "runs and cases", "p", "Holm"]
    return Table(name, f"Paired differences from {baseline}", note, columns, cells, rows)


def level_table(runs: Sequence[Finished]) -> Table:
    """First update and first hour at which validation curves reach levels of Dice."""
    cells, rows = [], []
    for line in levels(runs):
        where = [network_name(line.bundle), count_name(line.labelled), show(100 * line.level, 0)]
        reached = f"{line.reached} of {line.runs}"
        cells.append([*where, line.arm, reached, show(line.update, 0), show(line.hours, 3)])
        row: Row = {"network": where[0], "labelled": line.labelled, "level": 100 * line.level}
        row |= {"arm": line.arm, "runs": line.runs, "reached": line.reached}
        rows.append({**row, "update": line.update, "hours": line.hours})
    note = (
        "Median over all runs of the first validation with that mean Dice; a run that never has it "
        f"counts as infinitely late, so {UNDEFINED} where half of them do not. Hours of training, "
        "validations left out. Levels that no run reaches are left out."
    )
    header = ["network", "labelled", "Dice (%)", "arm", "reached", "update", "hours"]
    return Table("levels", "When curves reach levels of Dice", note, header, cells, rows)


def catch_up_table(runs: Sequence[Finished], baseline: str) -> Table:
    """Share of the baseline's updates at which each arm is as far as the baseline at its end."""
    cells, rows = [], []
    for line in catch_ups(runs, baseline):
        where = [network_name(line.bundle), count_name(line.labelled), line.arm]
        ahead = 100 * line.halfway
        texts = [str(line.never), show(line.share), show(ahead, sign=True)]
        cells.append([*where, str(line.pairs), *texts])
        row: Row = {"network": where[0], "labelled": line.labelled, "arm": line.arm}
        row |= {"pairs": line.pairs, "never": line.never, "share": line.share}
        rows.append({**row, "halfway": ahead})
    note = (
        f"Median over pairs of the share of {baseline}'s updates after which an arm has the Dice "
        f"of {baseline}'s last validation. {baseline} itself stands beside the others, as a curve "
        "that rises and falls is there before its end, too. Half-way is the mean over pairs of "
        f"arm − {baseline} in Dice (points) at the last validation of each half training."
    )
    header = ["network", "labelled", "arm", "pairs", "never", "share", "half-way"]
    return Table("catch_up", f"As far as {baseline} at its end", note, header, cells, rows)


def cost_table(runs: Sequence[Finished], baseline: str) -> Table:
    """Seconds of training an update by network and arm, and their ratio to the baseline."""
    cells, rows = [], []
    for line in costs(runs, baseline):
        where = [network_name(line.bundle), thread_name(line.threads), line.arm]
        texts = [str(line.seconds.n), _spread_text(line.seconds, 3), show(line.ratio)]
        cells.append([*where, *texts])
        row: Row = {"network": where[0], "threads": line.threads, "arm": line.arm}
        row |= {"runs": line.seconds.n, "seconds": line.seconds.mean, "sd": line.seconds.sd}
        rows.append({**row, "pairs": line.pairs, "ratio": line.ratio})
    note = (
        "Mean ± standard deviation over runs of training seconds / updates, validations left out, "
        f"and the mean ratio to {baseline} over pairs. Of use where all runs had a like machine to "
        "themselves."
    )
    header = ["network", "threads", "arm", "runs", "seconds an update", f"ratio to {baseline}"]
    return Table("cost", "Cost of an update", note, header, cells, rows)


def _scaled(runs: Sequence[Finished], figure: str) -> Spread:
    """Spread of a figure over runs, in % or mm."""
    scale = SCALES[figure.split("_")[0]]
    return spread([scale * run.mean(figure) for run in runs])


def _columns(spreads: Mapping[str, Spread]) -> Row:
    found: Row = {}
    for key, value in spreads.items():
        found |= {key: value.mean, f"{key}_sd": value.sd}
    return found


def _spread_text(value: Spread, digits: int = 2) -> str:
    if math.isnan(value.sd):
        return show(value.mean, digits)
    return f"{show(value.mean, digits)} ± {show(value.sd, digits)}"


def _interval(low: float, high: float) -> str:
    return f"[{show(low, sign=True)}, {show(high, sign=True)}]" if low == low else UNDEFINED


def _show_p(p: float) -> str:
    return "<0.0001" if p < 0.0001 else show(p, 4)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
