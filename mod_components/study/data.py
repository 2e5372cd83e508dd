"""The cases of a study's runs: equal for all arms, few labelled ones inside many."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from mod_components.data import make_datalist, make_sample, select
from mod_components.errors import SettingsError
from mod_components.study.plan import OWN_SPLIT, Plan, Run

__all__ = ["labelled_cases", "run_datalist", "study_datalist"]

# one split for all runs, whatever their seeds: the default seed of a training
SPLIT_SEED = 42


def study_datalist(plan: Plan) -> dict[str, Any]:
    """The data set's cases with folds that all runs of the study share.

    Args:
        plan: the plan.

    Raises:
        DataError: if the folder is no data set.
        SettingsError: if the plan wants more labelled cases, or other folds, than there are.
    """
    datalist = make_datalist(plan.dataset_dir or make_sample(), seed=SPLIT_SEED)
    if {OWN_SPLIT, 0} <= set(plan.folds) and not datalist["validation"]:
        raise SettingsError(
            f"folds: {datalist['dataset_dir']} has no validation cases of its own, so that -1 and "
            "0 hold out the same ones: leave one of them out."
        )
    most = max(*plan.labelled, *(arm.labelled or 0 for arm in plan.arms.values()))
    for fold in plan.folds:
        there = len(select(datalist, fold)[0])
        if most > there:
            raise SettingsError(
                f"labelled: the plan asks for {most} cases, and {there} of "
                f"{datalist['dataset_dir']} train when fold {fold} is held out."
            )
        if there in plan.labelled and (arms := plan.only_add_scans()):
            raise SettingsError(
                f"labelled: {there} are all cases that train when fold {fold} is held out, so that "
                f"none is left without labels for {', '.join(arms)}: write 0, which is all."
            )
    return datalist


def labelled_cases(cases: Sequence[str], number: int, seed: int) -> list[str]:
    """Choose the cases that are labelled in a run.

    Fewer cases are always among those of a larger number, so that a curve over numbers of cases
    does not compare other cases.

    Args:
        cases: ids of all cases that may train.
        number: how many; 0 for all.
        seed: the run's seed.

    Returns:
        Their ids, sorted.
    """
    # keyed by text, which a seed near another one does not resemble
    generator = random.Random(f"labelled cases of seed {seed}")
    keys = {case: generator.random() for case in sorted(cases)}
    chosen = sorted(cases, key=lambda case: keys[case])[: number or len(cases)]
    return sorted(chosen)


def run_datalist(datalist: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The datalist of one run: its labelled cases, and the ones that are held out.

    Args:
        datalist: the study's.
        run: the run.
    """
    training, held_out = select(datalist, run.fold)
    pool = [case["case"] for case in training]
    kept = {*labelled_cases(pool, run.labelled, run.seed), *(case["case"] for case in held_out)}
    return {
        **datalist,
        "training": [entry for entry in datalist["training"] if entry["case"] in kept],
    }
