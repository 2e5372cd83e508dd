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
from mod_components.errors import DataError, SettingsError, TrainingError
from mod_components.evaluation.compare import read_scores
from mod_components.evaluation.results import read_table
from mod_components.files import save_json, save_tensors
from mod_components.handlers.weights import read_checkpoint
from mod_components.settings import whole_number
from mod_components.study.data import run_datalist
from mod_components.study.plan import Plan, Run

__all__ = ["FINISHED", "carry_out", "is_finished", "prediction", "prepare_run"]

logger = logging.getLogger("mod_components.study")

FINISHED = "finished.json"
SETTINGS, EVALUATION = "run.json", "evaluate.json"
TEST = "test"
# settings of a training that its evaluation must be given too
OF_BOTH = ("network_def", "device", "overlap", "sw_batch_size")
FINAL = "final.pt"
LAST_LINES = 15
DIGITS = 6  # of the figures in a record: more would only make studies harder to keep and share


def is_finished(plan: Plan, run: Run, study: Path) -> bool:
    """Whether a run is finished and is still what the plan asks for.

    Raises:
        SettingsError: if it is finished with other settings.
    """
    path = study / run.folder / FINISHED
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8")).get("digest")
    if found != plan.digest(run):
        raise SettingsError(
            f"{path} is of a run with other settings than the plan's: give another folder "
            f"for the changed plan, or remove {path.parent} to run it anew."
        )
    return True


def prediction(folder: Path, case: str) -> Path:
    """Where a finished run's label map of a held-out case lies.

    Args:
        folder: the run's.
        case: the case's id.
    """
    return folder / TEST / f"{case}_seg.nii.gz"


def prepare_run(plan: Plan, run: Run, study: Path, datalist: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one run's training, complete.

    Args:
        plan: the plan.
        run: the run.
        study: the study's folder, into which the bundles are rendered.
        datalist: the study's (:func:`~mod_components.study.data.study_datalist`).

    Returns:
        What is laid over the bundle's ``train.json``.

    Raises:
        SettingsError: if the bundle has no such setting.
    """
    bundle, folder = study / "bundles" / run.bundle, study / run.folder
    given = plan.settings_of(run)
    config = ConfigParser(ConfigParser.load_config_file(str(bundle / "configs" / "train.json")))
    if unknown := [key for key in given if key.split("::")[0].split("#")[0] not in config]:
        raise SettingsError(
            f"{run.bundle} has no setting {', '.join(unknown)} (arm {run.arm}): its settings are "
            "the names at the top of its configs/train.json."
        )
    config.update({"dataset_dir": plan.dataset_dir, "bundle_root": str(bundle), **given})
    batch = whole_number("batch_size", config.get_parsed_content("batch_size"), 1)
    own = run_datalist(datalist, run)
    in_an_epoch = max(1, len(select(own, run.fold)[0]) // batch)
    epochs = -(-plan.updates // in_an_epoch)
    arm = plan.arms[run.arm]
    folder.mkdir(parents=True, exist_ok=True)
    save_datalist(own, folder / "datalist.json")
    settings = {
        **given,
        "bundle_root": str(bundle),
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"),
        "dataset_dir": plan.dataset_dir,
        "unlabelled_dir": str(datalist["dataset_dir"]) if arm.unlabelled else "",
        "datalist": str(folder / "datalist.json"),
        "fold": run.fold,
        "seed": run.seed,
        "epochs": epochs,
        "val_interval": max(1, epochs // plan.validations) if arm.evaluate else epochs + 1,
        "warmup_epochs": plan.warmup_updates / in_an_epoch,
        "mod_warmup_epochs": plan.mod_warmup_updates / in_an_epoch,
        "resume": _can_go_on(folder, plan.digest(run)),
        "study_digest": plan.digest(run),
        **_beginning(plan, run, study, config),
    }
    save_json(settings, folder / SETTINGS)
    return {**settings, "updates_per_epoch": in_an_epoch}


def _beginning(plan: Plan, run: Run, study: Path, config: ConfigParser) -> dict[str, Any]:
    """Where a run's first weights come from, and the network that a strict probe makes of it."""
    source, arm = plan.source(run), plan.arms[run.arm]
    if source is None:
        return {}
    weights = str(study / source.folder / "models" / FINAL)
    settings: dict[str, Any] = {"probe_from" if arm.probe else "init_from": weights}
    if arm.probe == "strict":
        settings["network_def"] = {
            "_target_": "mod_components.networks.PointProbe",
            "network": config["network_def"],
            "tap": config["tap"],
            "roi_size": "@roi_size",
            "layer_norm": config["mod#views#layer_norm"],
        }
    return settings


def _can_go_on(folder: Path, digest: str) -> bool:
    """Whether a cut run left a state, and the plan has not changed since."""
    try:
        begun = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = begun.get("study_digest") == digest
    return bool(same) and (folder / "models" / "last.pt").is_file()


def carry_out(
    plan: Plan, run: Run, study: Path, datalist: Mapping[str, Any], threads: int = 0
) -> Path:
    """Train, evaluate the network after the last update, and write ``finished.json``.

    A run that was cut goes on from its last epoch.

    Args:
        plan: the plan.
        run: the run.
        study: the study's folder.
        datalist: the study's.
        threads: threads of torch; 0 for its default.

    Returns:
        Path of ``finished.json``.

    Raises:
        TrainingError: if the training or its evaluation fails, with what it said last.
    """
    settings = prepare_run(plan, run, study, datalist)
    folder, configs = study / run.folder, study / "bundles" / run.bundle / "configs"
    overlay = [str(configs / "train.json"), str(folder / SETTINGS)]
    _bundle(run, folder / "train.log", threads, ["--config_file", str(overlay)])
    weights = _final_weights(plan, run, folder / "models")
    if plan.arms[run.arm].evaluate:
        test = {
            **{"checkpoint": str(weights), "output_dir": str(folder / TEST)},
            **{"dataset_dir": plan.dataset_dir, "save_predictions": True, "report_pictures": 0},
            **{key: settings[key] for key in OF_BOTH if key in settings},
        }
        save_json(test, folder / EVALUATION)
        overlay = [str(configs / "evaluate.json"), str(folder / EVALUATION)]
        _bundle(run, folder / "evaluate.log", threads, ["--config_file", str(overlay)])
    path = folder / FINISHED
    save_json(_record(plan, run, folder, settings, threads), path)
    (folder / "models" / "last.pt").unlink()  # of a finished run, its weights alone are kept
    return path


def _bundle(run: Run, log: Path, threads: int, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
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


def _record(
    plan: Plan, run: Run, folder: Path, settings: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    in_an_epoch = settings["updates_per_epoch"]
    report = json.loads((folder / "models" / "training.json").read_text(encoding="utf-8"))
    curve, losses, seconds = _curves(folder / "eval", in_an_epoch)
    arm = plan.arms[run.arm]
    tested = read_scores(folder / TEST) if arm.evaluate else {}
    scores = {case: _short(row) for case, row in tested.items()}
    return {
        "bundle": run.bundle,
        "arm": run.arm,
        "labelled": run.labelled,
        "fold": run.fold,
        "seed": run.seed,
        "digest": plan.digest(run),
        "training": report["settings"].get("training_cases"),
        "unlabelled": report["settings"].get("unlabelled_cases"),
        "probe": arm.probe,
        "start_from": arm.start_from,
        "updates": settings["epochs"] * in_an_epoch,
        "training_seconds": seconds,
        "threads": threads or torch.get_num_threads(),
        "curve": curve,
        "losses": losses,
        "scores": scores,
        "settings": report["settings"],
        "versions": report["versions"],
    }


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
    every = max(1, len(losses) // 20)  # the record is small: twenty points are enough
    return curve, losses[every - 1 :: every], total
