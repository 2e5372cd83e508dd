"""An evaluation as one HTML file that opens anywhere, offline: figures, plots and pictures."""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from mod_components.data.records import REGIONS
from mod_components.errors import DataError
from mod_components.evaluation.distributions import plot_distribution
from mod_components.evaluation.html_style import SCRIPT, STYLE
from mod_components.evaluation.results import (
    UNDEFINED,
    Case,
    MetricView,
    Results,
    note_text,
    read_results,
)
from mod_components.files import write_atomically
from mod_components.metrics import HD95_MISSED

__all__ = ["write_html"]

TITLE = "Evaluation of a tumour segmentation"
INTENDED_USE = "Research only, not to be used for diagnosis"

_NO_BREAK = "\N{NO-BREAK SPACE}"
_SUMMARY_REGIONS = {**{region: region for region in REGIONS}, "mean": "Mean of regions"}
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def write_html(
    folder: str | os.PathLike[str],
    pictures: Mapping[str, bytes] | None = None,
    title: str = TITLE,
) -> Path:
    """Write ``report.html`` beside the files of an evaluation.

    The page has no external resource: pictures and plots are in it, and its content policy
    forbids every request. Its script only makes the tables of cases sortable.

    Args:
        folder: an evaluation's output folder, with ``metrics_per_case.csv``,
            ``metrics_summary.csv`` and ``summary.json``.
        pictures: PNG or JPEG files by the id of the case that they show.
        title: the page's heading.

    Returns:
        The file written.

    Raises:
        DataError: if a file is missing or damaged, or a picture's case was not evaluated.
        ValueError: if a picture is neither PNG nor JPEG.
    """
    results = read_results(folder)
    pictures = pictures or {}
    if strange := sorted(set(pictures) - {case.name for case in results.cases}):
        raise DataError(
            f"{folder}/metrics_per_case.csv has no case {', '.join(strange[:5])}, of which there "
            "are pictures: evaluate and draw the same cases."
        )
    page = _page(title, results, pictures)
    path = Path(folder) / "report.html"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def _page(title: str, results: Results, pictures: Mapping[str, bytes]) -> str:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    sections = [
        _summary(results),
        _plots(results),
        _pictures(results, pictures),
        _all_cases(results, pictures),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
{_head(title, results)}<main>
{"".join(sections)}</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _head(title: str, results: Results) -> str:
    own = {"Cases": str(len(results.cases))}
    for metric in results.metrics[:2]:
        if mean := _mean_and_interval(results.summary.get("mean", {}), metric):
            own[f"Mean {metric.label}"] = mean
    date = {"Date of this report": datetime.date.today().isoformat()}
    notes: dict[str, str] = {}
    for note, value in results.notes.items():
        key = note[:1].upper() + note[1:]
        while key in {**own, **date, **notes}:  # a note stands beside a fact, never for it
            key += " (note)"
        notes[key] = note_text(value)
    data = {key: notes.pop(key) for key in ("Data",) if key in notes}
    facts = {**data, **own, **notes, **date}
    lines = [f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()]
    return (
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="intended">{INTENDED_USE}</p>\n'
        f'<dl class="facts">\n{_lines(lines)}</dl>\n</header>\n'
    )


def _summary(results: Results) -> str:
    regions = [region for region in _SUMMARY_REGIONS if region in results.summary]
    heads = [f'<th scope="col">{_SUMMARY_REGIONS[region]}</th>' for region in regions]
    rows = []
    for metric in results.metrics:
        cells = "".join(_summary_cell(results.summary[region], metric) for region in regions)
        rows.append(f"<tr>{_row_head(escape(metric.label))}{cells}</tr>")
    return f"""<section aria-labelledby="summary">
<h2 id="summary">Summary</h2>
<p class="note">TC: tumour core. WT: whole tumour. ET: enhancing tumour. Mean over the cases with,
in brackets, its 95 % confidence interval where there is one; below it the standard deviation
and the median. {_conventions(results)}</p>
<div class="scroll" role="region" aria-labelledby="summary" tabindex="0">
<table>
<thead><tr><th scope="col">Metric</th>{"".join(heads)}</tr></thead>
<tbody>
{_lines(rows)}</tbody>
</table>
</div>
</section>
"""


def _conventions(results: Results) -> str:
    keys = {metric.key for metric in results.metrics}
    said = f"Undefined values are shown as {UNDEFINED} and left out."
    if "hd95" in keys:
        said += (
            " By the BraTS conventions two empty masks have an HD95 of 0 mm, and an empty and a "
            f"non-empty one {HD95_MISSED:g} mm."
        )
    return said


def _summary_cell(row: Mapping[str, float], metric: MetricView) -> str:
    mean = _mean_and_interval(row, metric)
    if not mean:
        return f"<td>{UNDEFINED}</td>"
    below = [
        f"{name}{_NO_BREAK}{metric.show_mean(row[f'{metric.key}_{key}'])}"
        for key, name in (("std", "std"), ("median", "median"))
        if math.isfinite(row.get(f"{metric.key}_{key}", math.nan))
    ]
    number = row.get(f"{metric.key}_n", math.nan)
    if math.isfinite(number) and number != row.get("n"):
        below.append(f"n{_NO_BREAK}{number:.0f}")
    return f"<td>{escape(mean)}<small>{escape(', '.join(below))}</small></td>"


def _mean_and_interval(row: Mapping[str, float], metric: MetricView) -> str:
    mean, low, high = (
        row.get(f"{metric.key}_{key}", math.nan) for key in ("mean", "ci_low", "ci_high")
    )
    if not math.isfinite(mean):
        return ""
    text = metric.show_mean(mean)
    if math.isfinite(low) and math.isfinite(high):
        text += f" [{metric.show_mean(low, mean)}, {metric.show_mean(high, mean)}]"
    return text


def _plots(results: Results) -> str:
    figures = []
    for metric in results.metrics:
        values = {
            region: [case.values[metric.key].get(region, math.nan) for case in results.cases]
            for region in metric.regions
        }
        picture = _embedded(
            plot_distribution(values, metric.unit, metric.skewed), _described(metric, values)
        )
        figures.append(f"<figure><figcaption>{escape(metric.label)}</figcaption>{picture}</figure>")
    return f"""<section aria-labelledby="distributions">
<h2 id="distributions">How the cases are spread</h2>
<p class="note">A point is a case. Boxes: quartiles and median; whiskers reach the last case
within 1.5 times the box. Distances are on a logarithmic scale from 1 mm on.</p>
<div class="plots">
{_lines(figures)}</div>
</section>
"""


def _described(metric: MetricView, values: Mapping[str, Sequence[float]]) -> str:
    """What a plot shows, for those who do not see it."""
    parts = []
    for region, cases in values.items():
        known = np.array([value for value in cases if math.isfinite(value)])
        if known.size:
            low, median, high = (metric.show_mean(f(known)) for f in (np.min, np.median, np.max))
            parts.append(f"{region} median {median}, from {low} to {high}")
        else:
            parts.append(f"{region} undefined")
    return f"{metric.label} of the cases by region: {'; '.join(parts)}."


def _pictures(results: Results, pictures: Mapping[str, bytes]) -> str:
    shown = [(rank, case) for rank, case in enumerate(results.cases, 1) if case.name in pictures]
    if not shown:
        return ""
    cards = [_card(rank, case, results.metrics, pictures[case.name]) for rank, case in shown]
    return f"""<section aria-labelledby="worst">
<h2 id="worst">Cases with pictures, worst first</h2>
<p class="note">By mean Dice over the regions. Planes through the tumour, the patient's right on
the left. Solid outlines: truth; dashed: prediction; solid with dark dashes: both.</p>
{_lines(cards)}</section>
"""


def _card(rank: int, case: Case, metrics: Sequence[MetricView], picture: bytes) -> str:
    name = escape(case.name)
    heads = "".join(f'<th scope="col">{escape(metric.label)}</th>' for metric in metrics)
    rows = []
    for region in REGIONS:
        values = (metric.show(case.values[metric.key].get(region)) for metric in metrics)
        cells = "".join(f"<td>{value}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{region}</th>{cells}</tr>')
    alt = f"Scans of case {case.name} in three planes with true and predicted outlines"
    return f"""<article class="case" id="case-{rank}">
<h3>{rank}. {name}, mean Dice {_dice(case)}</h3>
{_embedded(picture, alt)}
<div class="scroll" role="region" aria-label="Figures of case {name}" tabindex="0">
<table>
<thead><tr><th scope="col">Region</th>{heads}</tr></thead>
<tbody>
{_lines(rows)}</tbody>
</table>
</div>
</article>"""


def _all_cases(results: Results, pictures: Mapping[str, bytes]) -> str:
    groups: dict[str, list[MetricView]] = {}
    for metric in results.metrics:
        groups.setdefault(metric.group, []).append(metric)
    tables = []
    for number, (group, metrics) in enumerate(groups.items()):
        table = _table_of_cases(group, metrics, results, pictures)
        opened = " open" if number == 0 else ""
        tables.append(f"<details{opened}><summary>{escape(group)}</summary>\n{table}</details>")
    return f"""<section aria-labelledby="cases">
<h2 id="cases">All cases, worst first</h2>
{_lines(tables)}</section>
"""


def _table_of_cases(
    group: str, metrics: Sequence[MetricView], results: Results, pictures: Mapping[str, bytes]
) -> str:
    over = ['<th scope="col" rowspan="2" data-column="0">Case</th>']
    over.append('<th scope="col" rowspan="2" data-column="1">Mean Dice</th>')
    over += [
        f'<th scope="colgroup" colspan="{len(metric.regions)}" class="start">'
        f"{escape(metric.label)}</th>"
        for metric in metrics
    ]
    columns = [(metric, region) for metric in metrics for region in metric.regions]
    under = [
        f'<th scope="col" data-column="{number}"{_start(metric, region)}>{region}</th>'
        for number, (metric, region) in enumerate(columns, 2)
    ]
    rows = []
    for rank, case in enumerate(results.cases, 1):
        name = escape(case.name)
        name = f'<a href="#case-{rank}">{name}</a>' if case.name in pictures else name
        cells = "".join(
            f"<td{_start(m, region)}>{m.show(case.values[m.key].get(region))}</td>"
            for m, region in columns
        )
        rows.append(f"<tr>{_row_head(name)}<td>{_dice(case)}</td>{cells}</tr>")
    return f"""<div class="scroll" role="region" aria-label="{escape(group)}" tabindex="0">
<table class="cases">
<thead>
<tr>{"".join(over)}</tr>
<tr>{"".join(under)}</tr>
</thead>
<tbody>
{_lines(rows)}</tbody>
</table>
</div>
"""


def _row_head(content: str) -> str:
    """The first cell of a row; it stays in view, and its inner box keeps it from filling that."""
    return f'<th scope="row"><span class="name">{content}</span></th>'


def _start(metric: MetricView, region: str) -> str:
    return ' class="start"' if region == metric.regions[0] else ""


def _dice(case: Case) -> str:
    return f"{case.mean_dice:.3f}" if math.isfinite(case.mean_dice) else UNDEFINED


def _embedded(picture: bytes, alt: str) -> str:
    kinds = [kind for magic, kind in _KINDS.items() if picture.startswith(magic)]
    if not kinds:
        raise ValueError(f"pictures must be PNG or JPEG files; not so: {alt}.")
    data = base64.b64encode(picture).decode()
    return f'<img src="data:image/{kinds[0]};base64,{data}" alt="{escape(alt)}">'


def _lines(parts: Iterable[str]) -> str:
    return "".join(f"{part}\n" for part in parts)
