"""Studies of many runs by a plan: carried out, resumed and reported."""

from __future__ import annotations

from mod_components.study.execute import Study, open_study
from mod_components.study.plan import Arm, Plan, Run
from mod_components.study.plan_file import read_plan

__all__ = ["Arm", "Plan", "Run", "Study", "open_study", "read_plan"]
