"""Find and name everything that is wrong with a data set."""

from __future__ import annotations

from mod_components.data.checks.facts import CaseFacts
from mod_components.data.checks.problem import Problem
from mod_components.data.checks.report import CheckResult, check_folder
from mod_components.data.checks.run import check_cases, refuse_bad_cases, usable_cases
from mod_components.data.checks.table import table

__all__ = [
    "CaseFacts",
    "CheckResult",
    "Problem",
    "check_cases",
    "check_folder",
    "refuse_bad_cases",
    "table",
    "usable_cases",
]
