"""Settings of one run of a study, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from mod_components.data import select
from mod_components.errors import SettingsError
from mod_components.settings import flag, whole_number
from mod_components.study.data import run_datalist
from mod_components.study.plan import AVERAGED, Plan, Run

__all__ = ["DIGEST", "FINAL", "SPLIT", "THREADS", "check_networks", "root_of", "run_settings"]

SPLIT = "datalist.json"
FINAL = "final.pt"
DIGEST, THREADS = "study_digest", "study_threads"


def run_settings(plan: Plan, run: Run, study: Path, datalist: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one run's training, complete; writes nothing.

    Args:
        plan: the plan.
        run: the run.
        study: the study's folder, into which the bundles are rendered.
        datalist: the study's (:func:`~mod_components.study.data.study_datalist`).

    Returns:
        What is laid over the bundle's ``train.json``.

    Raises:
        SettingsError: if the bundle has no such setting, or the arm lacks one that it needs.
    """
    bundle, folder, arm = study / "bundles" / run.bundle, study / run.folder, plan.arms[run.arm]
    config = _config(plan, run, study)
    in_an_epoch = _updates_per_epoch(config, run_datalist(datalist, run), run)
    epochs = -(-plan.updates // in_an_epoch)
    return {
        **plan.settings_of(run),
        "bundle_root": str(bundle),
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"),
        "dataset_dir": plan.dataset_dir,
        "unlabelled_dir": str(datalist["dataset_dir"]) if arm.unlabelled else "",
        "datalist": str(folder / SPLIT),
        "fold": run.fold,
        "seed": run.seed,
        "epochs": epochs,
        "val_interval": max(1, epochs // plan.validations) if arm.evaluate else epochs + 1,
        "warmup_epochs": plan.warmup_updates / in_an_epoch,
        "mod_warmup_epochs": plan.mod_warmup_updates / in_an_epoch,
        DIGEST: plan.digest(run),
        **_beginning(plan, run, study, config),
        "updates_per_epoch": in_an_epoch,
    }


def _updates_per_epoch(config: ConfigParser, datalist: Mapping[str, Any], run: Run) -> int:
    """Updates that a run makes in an epoch: of the last batch, whole ones alone are made."""
    batch = whole_number("batch_size", _parsed(config, "batch_size", run), 1)
    return max(1, len(select(datalist, run.fold)[0]) // batch)


def check_networks(plan: Plan, runs: Iterable[Run], study: Path) -> None:
    """Build the network of every bundle and arm once.

    Args:
        plan: the plan.
        runs: the runs whose networks are built.
        study: the study's folder, into which the bundles are rendered.

    Raises:
        SettingsError: if one can't be built.
    """
    for (bundle, arm), run in {(run.bundle, run.arm): run for run in runs}.items():
        try:
            try:  # without memory for weights, where the network's class can do that
                with torch.device("meta"):
                    _config(plan, run, study).get_parsed_content("network_def")
            except Exception:
                _config(plan, run, study).get_parsed_content("network_def")
        except Exception as error:  # whatever the network's class raises
            cause = error.__cause__ or error
            raise SettingsError(
                f"{bundle}, arm {arm}: its network can't be built with these settings ({cause})."
            ) from error


def _config(plan: Plan, run: Run, study: Path) -> ConfigParser:
    """A bundle's ``train.json`` under the plan's settings of a run."""
    bundle, given = study / "bundles" / run.bundle, plan.settings_of(run)
    config = ConfigParser(ConfigParser.load_config_file(str(bundle / "configs" / "train.json")))
    if unknown := [key for key in given if root_of(key) not in config]:
        raise SettingsError(
            f"{run.bundle} has no setting {', '.join(unknown)} (arm {run.arm}): its settings are "
            "the names at the top of its configs/train.json."
        )
    config.update({"dataset_dir": plan.dataset_dir, "bundle_root": str(bundle), **given})
    arm = plan.arms[run.arm]
    if arm.probe and flag(_parsed(config, "use_mod", run)):
        raise SettingsError(f'arms: {run.arm}: a probe trains without MOD: add "use_mod": false.')
    if arm.weights == AVERAGED and not flag(_parsed(config, "use_ema", run)):
        raise SettingsError(
            f'arms: {run.arm}: weights "{AVERAGED}" are kept with "use_ema": true alone: add it.'
        )
    return config


def _parsed(config: ConfigParser, name: str, run: Run) -> Any:
    try:
        return config.get_parsed_content(name)
    except Exception as error:  # whatever MONAI raises, and whatever an expression does
        cause = error.__cause__ or error
        raise SettingsError(
            f"{run.bundle}, arm {run.arm}: {name} can't be evaluated ({cause})."
        ) from error


def root_of(key: str) -> str:
    """The setting at the top of a config that a key such as ``mod#views`` is part of."""
    return key.split("::")[0].split("#")[0]


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
