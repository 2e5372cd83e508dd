"""Run the checks over many cases, and act on what they find."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tqdm import tqdm

from mod_components.data.checks.case import Case
from mod_components.data.checks.facts import CaseFacts, facts_of
from mod_components.data.checks.headers import CHECKS
from mod_components.data.checks.problem import ERROR, Problem
from mod_components.data.checks.volume import brief
from mod_components.data.checks.voxels import FULL_CHECKS
from mod_components.data.records import CaseRecord, Layout
from mod_components.errors import DataError

logger = logging.getLogger("mod_components.data.checks")

_PROGRESS_FROM = 20
_LINES_SHOWN = 20
_MAX_WORKERS = 8
_SKIP_HINT = "--skip_bad_cases true goes on with the rest."


def examine(
    records: Sequence[CaseRecord],
    layout: Layout,
    *,
    full: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[CaseFacts, list[Problem]]]:
    """Facts and problems of each case, in the order of ``records``.

    Args:
        records: from ``scan``.
        layout: from ``find_layout``; its codes are the ones allowed in label maps.
        full: read the voxels of all images too.
        workers: cases looked at side by side; by default one per processor, 8 at most.
        progress: whether to show a bar.
    """

    def one(record: CaseRecord) -> tuple[CaseFacts, list[Problem]]:
        return _examine_one(record, layout, full)

    workers = max(1, workers or min(_MAX_WORKERS, os.cpu_count() or 1))
    with _no_warnings(), ThreadPoolExecutor(workers) as pool:
        yield from tqdm(
            pool.map(one, records),
            total=len(records),
            desc="checking cases",
            disable=not progress,
        )


def _examine_one(record: CaseRecord, layout: Layout, full: bool) -> tuple[CaseFacts, list[Problem]]:
    case = Case(record, layout)
    problems: list[Problem] = []
    for check in CHECKS + FULL_CHECKS if full else CHECKS:
        try:
            problems += check(case)
        except Exception as error:  # one odd case must not hide what is wrong with the others
            name = check.__name__.replace("_", " ")
            message = f"the check of its {name} failed ({brief(error)})"
            mend = "leave the case out, and report this with the file's header"
            problems.append(case.error("check-failed", record.folder, message, mend))
    try:
        return facts_of(case, full), problems
    except Exception:
        return CaseFacts(record.case, labelled=bool(record.label)), problems


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep nibabel's and numpy's remarks on odd numbers off the console: checks say it better."""
    # The filters belong to the whole process: they are set once, outside the threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_cases(
    records: Sequence[CaseRecord], layout: Layout, *, full: bool = False
) -> list[Problem]:
    """Check headers and label codes of all cases.

    Args:
        records: from ``scan``.
        layout: from ``find_layout``; its codes are the ones allowed in label maps.
        full: read the voxels of all images too (finds broken, empty and doubtful ones; slow).

    Returns:
        All problems, in the order of ``records``. Never raises for what a file holds.
    """
    progress = len(records) > _PROGRESS_FROM
    found = examine(records, layout, full=full, progress=progress)
    return [problem for _, problems in found for problem in problems]


def refuse_bad_cases(
    records: Sequence[CaseRecord], layout: Layout, *, full: bool = False
) -> list[Problem]:
    """Check all cases, log the warnings and refuse the whole set if there is an error.

    Args:
        records: from ``scan``.
        layout: from ``find_layout``.
        full: see ``check_cases``.

    Returns:
        The warnings.

    Raises:
        DataError: naming all errors at once, or the first ones and their number.
    """
    problems = check_cases(records, layout, full=full)
    errors, others = _sorted(problems)
    _log_warnings(others)
    if errors:
        raise DataError(_refusal(errors, len(records)))
    return others


def usable_cases(
    records: Sequence[CaseRecord], layout: Layout, *, skip_bad: bool = False
) -> tuple[list[CaseRecord], list[Problem]]:
    """The cases that can be used, by the cheap checks of headers and label codes.

    Args:
        records: from ``scan``.
        layout: from ``find_layout``.
        skip_bad: leave out cases with an error, with one warning that names them, instead of
            refusing the whole set.

    Returns:
        The good cases, in the order of ``records``, and all problems, also of those left out.

    Raises:
        DataError: if a case has an error and ``skip_bad`` is false, or if no good case is left.
    """
    problems = check_cases(records, layout)
    errors, others = _sorted(problems)
    _log_warnings(others)
    if not errors:
        return list(records), problems
    bad = {problem.case for problem in errors}
    good = [record for record in records if record.case not in bad]
    if good and not skip_bad:
        raise DataError(f"{_refusal(errors, len(records))}\n{_SKIP_HINT}")
    if not good:
        raise DataError(f"{_refusal(errors, len(records))}\nNo case is left to use.")
    first: dict[str, Problem] = {}
    for problem in errors:
        first.setdefault(problem.case, problem)
    lines = "\n".join(f"  {problem}" for problem in first.values())
    logger.warning("%d of %d cases are left out:\n%s", len(first), len(records), lines)
    return good, problems


def _sorted(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings."""
    errors = [problem for problem in problems if problem.severity == ERROR]
    return errors, [problem for problem in problems if problem.severity != ERROR]


def _log_warnings(problems: Sequence[Problem]) -> None:
    for problem in problems[:_LINES_SHOWN]:
        logger.warning("%s", problem)
    if len(problems) > _LINES_SHOWN:
        logger.warning("… and %d more warnings", len(problems) - _LINES_SHOWN)


def _refusal(errors: Sequence[Problem], number: int) -> str:
    lines = [f"  {problem}" for problem in errors[:_LINES_SHOWN]]
    if len(errors) > _LINES_SHOWN:
        lines.append(f"  … and {len(errors) - _LINES_SHOWN} more")
    bad = len({problem.case for problem in errors})
    head = f"{bad} of {number} cases can't be used ({len(errors)} errors):"
    return "\n".join([head, *lines])
