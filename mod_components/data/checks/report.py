"""Check a whole data set; the result as text and as JSON."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from mod_components.data.checks.facts import CaseFacts
from mod_components.data.checks.folder import folder_problem, folder_problems
from mod_components.data.checks.problem import ERROR, Problem, relative
from mod_components.data.checks.run import examine
from mod_components.data.layouts import read_folder
from mod_components.errors import DataError


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
    # only a Decathlon folder knows this setting; another one would warn of it again
    together = folder_problems(root, records, facts, legacy_et and layout.name == "msd")
    of_folder = [problem for problem in together if not problem.case]
    of_cases = [p for _, problems in found for p in problems] + [p for p in together if p.case]
    of_cases.sort(key=lambda problem: problem.case)
    return CheckResult(root, layout.name, facts, (*of_folder, *of_cases), fast)


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
