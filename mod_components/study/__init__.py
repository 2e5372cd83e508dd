"""Comparison of runs: curves side by side, and studies of many runs by a plan."""

from __future__ import annotations

from mod_components.study.curves import plot_curves, read_curves
from mod_components.study.execute import Study, open_study
from mod_components.study.plan import Arm, Plan, Run
from mod_components.study.plan_file import read_plan

__all__ = ["Arm", "Plan", "Run", "Study", "open_study", "plot_curves", "read_curves", "read_plan"]
