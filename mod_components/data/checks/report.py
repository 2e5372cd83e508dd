"""The report on a whole data set, as text and as JSON."""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mod_components.data.checks.facts import CaseFacts
from mod_components.data.checks.folder import (
    counted,
    folder_problem,
    folder_problems,
    spacing_text,
)
from mod_components.data.checks.problem import ERROR, Problem
from mod_components.data.checks.run import examine
from mod_components.data.layouts import read_folder
from mod_components.errors import DataError

_ALL_CASES_UP_TO = 50
_PROBLEMS_SHOWN = 200
_WIDTH = 110


@dataclass(frozen=True)
class CheckResult:
    """What was found in a data set.

    Attributes:
        folder: absolute path of the data set.
        layout: the layout's name; empty where the folder can't be read.
        cases: the facts of every case, sorted by id.
        problems: those of the folder first, then case by case.
        fast: whether only headers and label maps were read.
    """

    folder: str
    layout: str
    cases: tuple[CaseFacts, ...]
    problems: tuple[Problem, ...]
    fast: bool = False

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == ERROR]

    @property
    def exit_code(self) -> int:
        """1 when there is any error, else 0."""
        return int(bool(self.errors))

    def table(self) -> str:
        """A text for the console: the data set, its cases and its problems."""
        lines = [*_head(self), "", *_case_table(self), *_problem_list(self)]
        # a file's name may hold bytes that are no UTF-8, which a console refuses
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain types, for JSON; files are relative to the folder."""
        return {
            "folder": self.folder,
            "layout": self.layout or None,
            "fast": self.fast,
            "errors": len(self.errors),
            "warnings": len(self.problems) - len(self.errors),
            "cases": [_case_dict(fact) for fact in self.cases],
            "problems": [
                {
                    "kind": problem.kind,
                    "severity": problem.severity,
                    "case": problem.case,
                    "file": relative(problem.file, self.folder),
                    "message": problem.message,
                    "mend": problem.mend,
                }
                for problem in self.problems
            ],
        }


def check_folder(
    dataset_dir: str | os.PathLike[str],
    *,
    legacy_et: bool = False,
    fast: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> CheckResult:
    """Check a whole data set; whatever is wrong with it is in the result, nothing is raised.

    Args:
        dataset_dir: folder in a layout that ``find_layout`` knows.
        legacy_et: see ``find_layout``.
        fast: read headers and label maps only.
        workers: cases looked at side by side; by default one per processor, 8 at most.
        progress: whether to show a bar.
    """
    root = os.path.abspath(os.path.expanduser(os.fspath(dataset_dir)))
    try:
        layout, records = read_folder(root, legacy_et)
    except (DataError, OSError, RecursionError) as error:  # the last: JSON nested without end
        return CheckResult(root, "", (), (folder_problem(root, error),), fast)
    found = list(examine(records, layout, full=not fast, workers=workers, progress=progress))
    facts = tuple(fact for fact, _ in found)
    together = folder_problems(root, records, facts)
    of_folder = [problem for problem in together if not problem.case]
    of_cases = [p for _, problems in found for p in problems] + [p for p in together if p.case]
    of_cases.sort(key=lambda problem: problem.case)
    return CheckResult(root, layout.name, facts, (*of_folder, *of_cases), fast)


def relative(path: str, folder: str) -> str:
    """A path below the folder without it, "." for the folder itself; another path as it is."""
    short = os.path.relpath(path, folder)
    return path if short.startswith("..") else short


def _case_dict(fact: CaseFacts) -> dict[str, Any]:
    return {
        "case": fact.case,
        "shape": list(fact.shape),
        "spacing_mm": [size if math.isfinite(size) else None for size in fact.spacing_mm],
        "orientation": fact.orientation or None,
        "labelled": fact.labelled,
        "codes": list(fact.codes),
        "missing": list(fact.missing),
    }


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
    if len(shown) > _ALL_CASES_UP_TO:
        shown = [fact for fact in shown if fact.case in severities]
    rows: list[tuple[str, ...]] = [("case", "shape", "spacing", "axes", "label", "problems")]
    for fact in shown:
        tally = severities.get(fact.case, Counter())
        trouble = ", ".join(_plural(tally[name], name) for name in sorted(tally)) or "-"
        codes = " ".join(map(str, fact.codes)) or "no codes"
        label = codes if fact.labelled else "none"
        cells = (_shape(fact), _spacing(fact), fact.orientation)
        rows.append((fact.case, *(cell or "?" for cell in cells), label, trouble))
    lines = _aligned(rows) if len(rows) > 1 else []
    if rest := len(result.cases) - len(shown):
        lines.append(f"{rest} other cases without problems")
    return [*lines, ""] if lines else []


def _problem_list(result: CheckResult) -> list[str]:
    errors = len(result.errors)
    if not result.problems:
        return ["no problem found"]
    lines = [f"{_plural(errors, 'error')}, {_plural(len(result.problems) - errors, 'warning')}"]
    # errors first: they have to be mended before anything runs
    ordered = sorted(result.problems, key=lambda problem: problem.severity != ERROR)
    for problem in ordered[:_PROBLEMS_SHOWN]:
        file = relative(problem.file, result.folder)
        head = f"{problem.severity:<8}{problem.kind}: {problem.case or 'the folder'}"
        lines.append(head if file == "." else f"{head}, {file}")
        lines += _wrapped(" " * 8, problem.message)
        lines += _wrapped(" " * 8 + "→ ", problem.mend)
    if len(ordered) > _PROBLEMS_SHOWN:
        lines.append(f"… and {len(ordered) - _PROBLEMS_SHOWN} more; the JSON report lists all")
    return lines


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
