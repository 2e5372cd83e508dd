"""Reads a study's plan from its file, and refuses what can't be run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_components.errors import SettingsError
from mod_components.files import read_object
from mod_components.settings import whole_number
from mod_components.study.plan import AVERAGED, LAST_STATE, OWN_SPLIT, Arm, Plan

__all__ = ["PLAN", "read_plan"]

PLAN = "plan.json"
"""Name of the plan in a study's folder."""

REQUIRED = {"bundles", "arms", "updates"}
OPTIONAL = {
    *("name", "about", "dataset_dir", "table", "settings", "labelled", "folds", "seeds"),
    *("warmup_updates", "mod_warmup_updates", "validations"),
}

# settings that the study itself gives to every run
OWN_SETTINGS = (
    *("bundle_root", "ckpt_dir", "output_dir", "dataset_dir", "unlabelled_dir", "datalist"),
    *("fold", "seed", "epochs", "val_interval", "warmup_epochs", "mod_warmup_epochs"),
    *("resume", "resume_from", "restart", "init_from", "probe_from", "skip_bad_cases"),
)
# what would change the number of updates, or what is in one, unseen by the study
OF_THE_LENGTH = (
    *("train#trainer", "train#trainer#max_epochs", "train#trainer#epoch_length"),
    *("train#dataloader", "train#dataloader#batch_size", "train#dataloader#drop_last"),
)
OF_AN_ARM = ("unlabelled", "labelled", "weights", "start_from", "probe", "evaluate")
WEIGHTS = (LAST_STATE, AVERAGED)
PROBES = ("", "linear", "strict")


def read_plan(path: str | os.PathLike[str], dataset_dir: str = "") -> Plan:
    """Read a plan from JSON.

    Args:
        path: the file; paths in it are relative to its folder.
        dataset_dir: folder of the data set, instead of the plan's.

    Raises:
        DataError: if the file is missing or no JSON object.
        SettingsError: if something in it is unknown, lacking or out of range.
    """
    source = Path(path)
    content = read_object(source, "the plan")
    _check_keys(source, content)
    updates = whole_number("updates", content["updates"], 1)
    warmup = whole_number("warmup_updates", content.get("warmup_updates", updates // 20))
    settings = _settings(source, "settings", content.get("settings", {}))
    bundles = _bundles(source, content["bundles"])
    table = _path(source, "table", content.get("table", ""))
    data = os.path.abspath(os.path.expanduser(dataset_dir)) if dataset_dir else ""
    return Plan(
        name=_name(source, "name", content.get("name", source.stem)),
        dataset_dir=data or _path(source, "dataset_dir", content.get("dataset_dir", "")),
        bundles=bundles,
        table=table,
        rows=_rows(table, bundles),
        arms=_arms(source, content["arms"]),
        settings=settings,
        labelled=_numbers(source, "labelled", content.get("labelled", [0]), 0),
        folds=_numbers(source, "folds", content.get("folds", [OWN_SPLIT]), OWN_SPLIT),
        seeds=_numbers(source, "seeds", content.get("seeds", [42]), 0),
        updates=updates,
        warmup_updates=warmup,
        mod_warmup_updates=whole_number(
            "mod_warmup_updates", content.get("mod_warmup_updates", warmup)
        ),
        validations=whole_number("validations", content.get("validations", 5), 1),
    )


def _check_keys(source: Path, content: Mapping[str, Any]) -> None:
    if unknown := sorted(set(content) - REQUIRED - OPTIONAL):
        known = ", ".join(sorted(REQUIRED | OPTIONAL))
        raise SettingsError(f"{source}: unknown {', '.join(unknown)}; a plan has {known}.")
    if lacking := sorted(REQUIRED - set(content)):
        raise SettingsError(f"{source} lacks {', '.join(lacking)}.")


def _rows(table: str, bundles: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the plan's own table; what is in them is checked where they are rendered."""
    content = read_object(Path(table), "the table of backbones") if table else {}
    names = (bundle.removesuffix("_mod") for bundle in bundles)
    return {name: content[name] for name in names if name in content}


def _path(source: Path, key: str, planned: Any) -> str:
    if not isinstance(planned, str):
        raise SettingsError(f"{source}: {key} must be a path, got {planned!r}.")
    return os.path.abspath(source.parent / os.path.expanduser(planned)) if planned else ""


def _name(source: Path, where: str, value: Any) -> str:
    """A name that a folder can have."""
    text = value if isinstance(value, str) else ""
    if not text.strip() or text in (".", "..") or set(text) & set("/\\\0"):
        raise SettingsError(f"{source}: {where} must be a name without / and \\, got {value!r}.")
    return text


def _bundles(source: Path, value: Any) -> dict[str, dict[str, Any]]:
    named = {str(name): {} for name in value} if isinstance(value, list) else value
    if not isinstance(named, dict) or not named:
        raise SettingsError(f"{source}: bundles must be a list of names, or settings by name.")
    return {name: _settings(source, f"bundles: {name}", own) for name, own in named.items()}


def _arms(source: Path, value: Any) -> dict[str, Arm]:
    if not isinstance(value, dict) or not value:
        raise SettingsError(f"{source}: arms must be settings by name, the baseline first.")
    arms: dict[str, Arm] = {}
    for name, own in value.items():
        arm = _arm(source, _name(source, "an arm", name), own)
        where = f"{source}: arms: {name}"
        if not arms and (arm.probe or not arm.evaluate):
            raise SettingsError(
                f"{where}: the first arm is what the others are compared with: it must be "
                "evaluated, and no probe."
            )
        # only arms before this one: what a run begins with is then always there when it starts
        if arm.start_from and arm.start_from not in arms:
            raise SettingsError(
                f"{where}: start_from must name an arm before it, got {arm.start_from!r}."
            )
        arms[name] = arm
    return arms


def _arm(source: Path, name: str, value: Any) -> Arm:
    where = f"{source}: arms: {name}"
    settings = _settings(source, f"arms: {name}", value)
    facts = {key: settings.pop(key) for key in OF_AN_ARM if key in settings}
    for key in ("unlabelled", "evaluate"):
        if not isinstance(facts.get(key, False), bool):
            raise SettingsError(f"{where}: {key} must be true or false, got {facts[key]!r}.")
    for key, allowed in (("weights", WEIGHTS), ("probe", PROBES)):
        if facts.get(key, allowed[0]) not in allowed:
            words = ", ".join(repr(word) for word in allowed)
            raise SettingsError(f"{where}: {key} must be one of {words}, got {facts[key]!r}.")
    if not isinstance(facts.get("start_from", ""), str):
        raise SettingsError(f"{where}: start_from must be an arm's name.")
    if facts.get("labelled") is not None:
        facts["labelled"] = whole_number(f"{where}: labelled", facts["labelled"])
    if facts.get("probe") and not facts.get("start_from"):
        raise SettingsError(f"{where}: a probe needs start_from, the arm that it probes.")
    return Arm(settings, **facts)


def _settings(source: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{source}: {where} must be an object of settings, got {value!r}.")
    if taken := sorted(set(value) & set(OWN_SETTINGS)):
        raise SettingsError(
            f"{source}: {where} can't set {', '.join(taken)}: the study gives them to each run, "
            "lengths in updates (updates, warmup_updates, mod_warmup_updates), and all its cases "
            "must be sound."
        )
    if taken := sorted({key.replace("::", "#") for key in value} & set(OF_THE_LENGTH)):
        raise SettingsError(
            f"{source}: {where} can't set {', '.join(taken)}: all runs of a study make the plan's "
            "updates; batch_size is the size of one."
        )
    return dict(value)


def _numbers(source: Path, name: str, value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise SettingsError(f"{source}: {name} must be a list of whole numbers.")
    numbers = [whole_number(f"{source}: {name}", item, least) for item in value]
    if len(set(numbers)) != len(numbers):
        raise SettingsError(f"{source}: {name} names a number twice.")
    return tuple(numbers)
