"""The record of a finished run: all that a report needs, in one small file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_components.data import load_datalist, select
from mod_components.errors import DataError
from mod_components.evaluation.compare import read_scores
from mod_components.evaluation.results import read_table
from mod_components.study.plan import Plan, Run
from mod_components.study.prepare import SPLIT, THREADS

__all__ = ["FINISHED", "MIXED", "TEST", "run_record", "training_cases"]

FINISHED = "finished.json"
MIXED = 0  # threads of a run that was cut and went on with others
TEST = "test"
DIGITS = 6  # of the figures in a record: more would only make studies harder to keep and share
POINTS = 20  # of the losses


def run_record(
    plan: Plan, run: Run, study: Path, settings: Mapping[str, Any], made: int
) -> dict[str, Any]:
    """What a run found, and what it ran with.

    Args:
        plan: the plan.
        run: a run that was trained, and evaluated where its arm asks for that.
        study: the study's folder.
        settings: of its training (:func:`~mod_components.study.prepare.run_settings`), and the
            numbers of threads that it ran with.
        made: updates that it made.

    Raises:
        DataError: if what the training wrote is not whole.
    """
    folder, in_an_epoch = study / run.folder, settings["updates_per_epoch"]
    report = json.loads((folder / "models" / "training.json").read_text(encoding="utf-8"))
    curve, losses, seconds = _curves(folder / "eval", in_an_epoch)
    arm, threads = plan.arms[run.arm], settings[THREADS]
    tested = read_scores(folder / TEST) if arm.evaluate else {}
    return {
        "bundle": run.bundle,
        "arm": run.arm,
        "labelled": run.labelled,
        "fold": run.fold,
        "seed": run.seed,
        "digest": plan.digest(run),
        "training": report["settings"].get("training_cases"),
        "training_ids": training_cases(load_datalist(folder / SPLIT), run),
        "unlabelled": report["settings"].get("unlabelled_cases"),
        "probe": arm.probe,
        "start_from": arm.start_from,
        "updates": made,
        "training_seconds": seconds,
        "threads": threads[0] if len(threads) == 1 else MIXED,
        "curve": curve,
        "losses": losses,
        "scores": {case: _short(row) for case, row in tested.items()},
        "settings": report["settings"],
        "versions": report["versions"],
    }


def training_cases(datalist: Mapping[str, Any], run: Run) -> list[str]:
    """Ids of the labelled cases of a run's own datalist, sorted."""
    return sorted(case["case"] for case in select(datalist, run.fold)[0])


def _short(row: Mapping[str, float]) -> dict[str, float | None]:
    """Figures with few digits; None where one is undefined, for JSON has no nan."""
    return {k: float(f"{v:.{DIGITS}g}") if v == v else None for k, v in row.items()}


def _curves(
    output: Path, in_an_epoch: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Validations and losses by update, and the seconds of all epochs without validations."""
    if not (output / "train.csv").is_file():
        raise DataError(f"{output} has no train.csv: remove {output.parent} and run it again.")
    epochs = read_table(output / "train.csv", "epoch")
    total, passed = 0.0, {}
    losses = []
    for epoch, row in epochs.items():
        total += row["seconds"]
        passed[epoch] = total
        known = {key: value for key, value in row.items() if value == value and key != "lr"}
        losses.append({"update": int(epoch) * in_an_epoch, **_short(known)})
    validated = (output / "validation.csv").is_file()
    validations = read_table(output / "validation.csv", "epoch") if validated else {}
    curve = [
        {"update": int(epoch) * in_an_epoch, **_short({"seconds": passed[epoch], **row})}
        for epoch, row in validations.items()
    ]
    every = max(1, len(losses) // POINTS)
    return curve, losses[every - 1 :: every], total
