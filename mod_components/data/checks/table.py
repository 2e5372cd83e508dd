"""The report on a data set as a text for the console."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mod_components.data.checks.facts import CaseFacts
from mod_components.data.checks.folder import counted, spacing_text
from mod_components.data.checks.problem import ERROR, Problem, relative

if TYPE_CHECKING:
    from mod_components.data.checks.report import CheckResult

_ROWS_SHOWN = 50
_ENTRIES_SHOWN = 200
_ALIKE_FROM = 10
_LONG = 20
_WIDTH = 110
# not the digits of T1 and T2
_NUMBER = re.compile(r"(?<![A-Za-z\d])\d+(\.\d+)?(e[-+]?\d+)?")


def table(result: CheckResult) -> str:
    """The data set, its cases and its problems.

    Problems that ten cases or more have alike are one entry that lists these cases.
    """
    lines = [*_head(result), "", *_case_table(result), *_problem_list(result)]
    # a file's name may hold bytes that are no UTF-8, which a console refuses
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def _head(result: CheckResult) -> list[str]:
    def counts(text: Callable[[CaseFacts], str]) -> str:
        return counted(Counter(text(fact) or "unknown" for fact in result.cases)) or "none"

    labelled = sum(fact.labelled for fact in result.cases)
    rows = [("folder", result.folder), ("layout", result.layout or "unknown")]
    if result.cases:
        rows += [
            ("cases", f"{len(result.cases)} ({labelled} with a label map)"),
            ("shapes", counts(_shape)),
            ("spacings", counts(_spacing)),
            ("orientations", counts(lambda fact: fact.orientation)),
        ]
    if result.fast:
        rows.append(("read", "headers and label maps only (fast)"))
    lines: list[str] = []
    for name, value in rows:
        lines += _wrapped(f"{name:<14}", value)
    return lines


def _case_table(result: CheckResult) -> list[str]:
    """Rows of all cases, or of those with problems where there are many."""
    severities: dict[str, Counter[str]] = {}
    for problem in result.problems:
        severities.setdefault(problem.case, Counter())[problem.severity] += 1
    shown = list(result.cases)
    if len(shown) > _ROWS_SHOWN:
        shown = [fact for fact in shown if fact.case in severities]
    shown, more = shown[:_ROWS_SHOWN], shown[_ROWS_SHOWN:]
    rows: list[tuple[str, ...]] = [("case", "shape", "spacing", "axes", "label", "problems")]
    for fact in shown:
        tally = severities.get(fact.case, Counter())
        trouble = ", ".join(_plural(tally[name], name) for name in sorted(tally)) or "-"
        codes = " ".join(map(str, fact.codes)) or "no codes"
        label = codes if fact.labelled else "none"
        cells = (_shape(fact), _spacing(fact), fact.orientation)
        rows.append((fact.case, *(cell or "?" for cell in cells), label, trouble))
    lines = _aligned(rows) if len(rows) > 1 else []
    if more:
        lines.append(f"… and {len(more)} more cases with problems")
    if rest := len(result.cases) - len(shown) - len(more):
        lines.append(f"{rest} other cases without problems")
    return [*lines, ""] if lines else []


def _problem_list(result: CheckResult) -> list[str]:
    """Errors first, because they have to be mended before anything runs; totals at both ends."""
    errors = len(result.errors)
    if not result.problems:
        return ["no problem found"]
    total = f"{_plural(errors, 'error')}, {_plural(len(result.problems) - errors, 'warning')}"
    entries = sorted(_alike(result.problems), key=lambda alike: alike[0].severity != ERROR)
    lines = [total]
    for alike in entries[:_ENTRIES_SHOWN]:
        lines += _entry(alike, result.folder)
    if rest := sum(map(len, entries[_ENTRIES_SHOWN:])):
        lines.append(f"… and {rest} more; the JSON report lists all")
    return [*lines, total] if len(lines) > _LONG else lines


def _alike(problems: Sequence[Problem]) -> list[list[Problem]]:
    """Problems that differ in their case and in numbers alone, where ten cases or more have them.

    All others stay by themselves. In the order of the first of each.
    """
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        text = f"{problem.message} ({problem.mend})"
        shape = _NUMBER.sub("#", text.replace(problem.case, "") if problem.case else text)
        key = (problem.severity, problem.kind, shape)
        groups.setdefault(key, []).append(problem)
    entries: list[list[Problem]] = []
    for group in groups.values():
        many = len({problem.case for problem in group}) >= _ALIKE_FROM
        entries += [group] if many else [[problem] for problem in group]
    order = {id(problem): index for index, problem in enumerate(problems)}
    return sorted(entries, key=lambda entry: order[id(entry[0])])


def _entry(alike: Sequence[Problem], folder: str) -> list[str]:
    problem = alike[0]
    file = relative(problem.file, folder)
    cases = list(dict.fromkeys(one.case for one in alike))
    where = f"{problem.case or 'the folder'}" + ("" if file == "." else f", {file}")
    if len(cases) > 1:
        where = f"{len(cases)} cases, the first of them {where}"
    lines = [f"{problem.severity:<8}{problem.kind}: {where}"]
    lines += _wrapped(" " * 8, problem.message)
    lines += _wrapped(" " * 8 + "→ ", problem.mend)
    return lines + (_wrapped(" " * 8 + "cases: ", ", ".join(cases)) if len(cases) > 1 else [])


def _shape(fact: CaseFacts) -> str:
    return " × ".join(map(str, fact.shape))


def _spacing(fact: CaseFacts) -> str:
    return spacing_text(fact.spacing_mm) if fact.spacing_mm else ""


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _wrapped(head: str, text: str) -> list[str]:
    """Text behind a head, its further lines indented as far; paths are never broken."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
