"""One run of a study: trained, evaluated and written down, or gone on with where it was cut."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from mod_components.data import save_datalist, select
from mod_components.errors import SettingsError, TrainingError
from mod_components.files import read_object, save_json, save_tensors
from mod_components.handlers.weights import read_checkpoint
from mod_components.study.data import run_datalist
from mod_components.study.plan import LAST_STATE, Plan, Run
from mod_components.study.prepare import DIGEST, FINAL, SPLIT, THREADS, root_of, run_settings
from mod_components.study.record import FINISHED, TEST, run_record, training_cases

__all__ = ["carry_out", "is_finished", "prediction"]

logger = logging.getLogger("mod_components.study")

SETTINGS, CONFIG, EVALUATION = "run.json", "config.json", "evaluate.json"
# settings of a training that its evaluation must be given too
OF_BOTH = ("network_def", "device", "overlap", "sw_batch_size")
LAST_LINES = 15


def is_finished(plan: Plan, run: Run, study: Path, datalist: Mapping[str, Any]) -> bool:
    """Whether a run is finished and is still what the plan asks for.

    Args:
        plan: the plan.
        run: the run.
        study: the study's folder.
        datalist: the study's.

    Raises:
        DataError: if its record can't be read.
        SettingsError: if it is finished with other settings, or on other cases.
    """
    path = study / run.folder / FINISHED
    if not path.is_file():
        return False
    found = read_object(path, "the record", f"Remove {path.parent} and run the study again.")
    if found.get("digest") != plan.digest(run):
        raise SettingsError(
            f"{path} is of a run with other settings than the plan's, or on a data set of another "
            f"name than {Path(plan.dataset_dir).name or 'the sample'}: give another folder for the "
            f"changed plan, or remove {path.parent} to run it anew."
        )
    own = run_datalist(datalist, run)
    held_out = {case["case"] for case in select(own, run.fold)[1]}
    trained = training_cases(own, run)
    same = found.get("training_ids", trained) == trained  # records of old do not name them
    if not same or (found.get("scores") and set(found["scores"]) != held_out):
        raise SettingsError(
            f"{path} is of a run on other cases than {datalist['dataset_dir']} has for it now: "
            "put the data set back as it was, or give another folder for the changed one."
        )
    return True


def prediction(folder: Path, case: str) -> Path:
    """Where a finished run's label map of a held-out case lies.

    Args:
        folder: the run's.
        case: the case's id.
    """
    return folder / TEST / f"{case}_seg.nii.gz"


def carry_out(
    plan: Plan,
    run: Run,
    study: Path,
    datalist: Mapping[str, Any],
    threads: int = 0,
    keep_open: Sequence[int] = (),
) -> Path:
    """Train, evaluate the network after the last update, and write ``finished.json``.

    A run that was cut goes on from its last epoch, unless the plan or its cases have changed since.

    Args:
        plan: the plan.
        run: the run.
        study: the study's folder.
        datalist: the study's.
        threads: threads of torch; 0 for its default.
        keep_open: file descriptors that training and evaluation hold, too: a lock on the run's
            folder then lasts as long as they do.

    Returns:
        Path of ``finished.json``.

    Raises:
        TrainingError: if the training or its evaluation fails, with what it said last.
    """
    settings = run_settings(plan, run, study, datalist)
    folder, configs = study / run.folder, study / "bundles" / run.bundle / "configs"
    settings[THREADS] = _begin(folder, settings, run_datalist(datalist, run), threads)
    save_json(_whole(configs / "train.json", folder / SETTINGS), folder / CONFIG)

    def execute(workflow: str, settings_file: str) -> None:
        overlay = [str(configs / f"{workflow}.json"), str(folder / settings_file)]
        _bundle(run, folder / f"{workflow}.log", threads, overlay, keep_open)

    execute("train", SETTINGS)
    weights = _final_weights(plan, run, folder / "models")
    if plan.arms[run.arm].evaluate:
        test = {
            **{"checkpoint": str(weights), "output_dir": str(folder / TEST)},
            **{"dataset_dir": plan.dataset_dir, "save_predictions": True, "report_pictures": 0},
            **{key: value for key, value in settings.items() if root_of(key) in OF_BOTH},
        }
        save_json(test, folder / EVALUATION)
        execute("evaluate", EVALUATION)
    path = folder / FINISHED
    last = folder / "models" / LAST_STATE
    made = int(read_checkpoint(last)["iteration"])
    save_json(run_record(plan, run, study, settings, made), path)
    last.unlink()  # of a finished run, its weights alone are kept
    return path


def _whole(config: Path, settings: Path) -> dict[str, Any]:
    """A bundle's config under a run's settings, in one piece: ``run`` takes it by itself."""
    parser = ConfigParser(ConfigParser.load_config_file(str(config)))
    parser.update(ConfigParser.load_config_file(str(settings)))
    return dict(parser.get())


def _begin(
    folder: Path, settings: Mapping[str, Any], datalist: Mapping[str, Any], threads: int
) -> list[int]:
    """Write a run's settings; a state that a cut run left counts only if nothing has changed.

    Returns:
        The numbers of threads with which it has run so far, and will from now on.
    """
    state = folder / "models" / LAST_STATE
    resume = state.is_file() and _is_as_begun(folder, settings[DIGEST], datalist)
    if state.is_file() and not resume:
        # out of the way at once: else a cut before the first save would go on from it
        os.replace(state, state.with_name("replaced.pt"))
    folder.mkdir(parents=True, exist_ok=True)
    save_datalist(datalist, folder / SPLIT)
    before = read_object(folder / SETTINGS).get(THREADS, []) if resume else []
    used = sorted({*before, threads or torch.get_num_threads()})
    given = {key: value for key, value in settings.items() if key != "updates_per_epoch"}
    save_json({**given, THREADS: used, "resume": resume}, folder / SETTINGS)
    return used


def _is_as_begun(folder: Path, digest: str, datalist: Mapping[str, Any]) -> bool:
    try:
        begun = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        cases = json.loads((folder / SPLIT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    entries = ("training", "validation")
    same = all(cases.get(key) == datalist[key] for key in entries)
    return bool(same and begun.get(DIGEST) == digest)


def _bundle(
    run: Run, log: Path, threads: int, overlay: Sequence[str], keep_open: Sequence[int]
) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(overlay)]
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=keep_open,
            check=False,
        )
    if done.returncode:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-LAST_LINES:])
        raise TrainingError(f"{run.folder} failed; the end of {log}:\n{last}")


def _final_weights(plan: Plan, run: Run, models: Path) -> Path:
    """The weights after the last update as a flat file: never the best of several validations."""
    chosen = models / plan.arms[run.arm].weights
    state = read_checkpoint(chosen)
    save_tensors(state.get("network", state), models / FINAL)
    return models / FINAL
