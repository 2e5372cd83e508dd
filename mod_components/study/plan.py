"""The plan of a study: which bundles, arms, numbers of labelled cases, folds and seeds are run."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mod_components.errors import DataError, SettingsError
from mod_components.settings import whole_number

__all__ = ["Arm", "Plan", "Run", "read_plan"]

# settings that the study itself gives to every run
OWN_SETTINGS = (
    *("bundle_root", "ckpt_dir", "output_dir", "dataset_dir", "unlabelled_dir", "datalist"),
    *("fold", "seed", "epochs", "val_interval", "warmup_epochs", "mod_warmup_epochs"),
    *("resume", "resume_from", "restart", "init_from", "probe_from"),
)
OF_AN_ARM = ("unlabelled", "labelled", "weights", "start_from", "probe", "evaluate")
WEIGHTS = ("last.pt", "model_ema.pt")
PROBES = ("", "linear", "strict")
OWN_SPLIT = -1


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        settings: settings of ``train.json`` that differ from the bundle's.
        unlabelled: whether the scans that are not labelled for a run come along without labels.
        weights: file beside the run's last state that is evaluated: ``last.pt`` (the network
            after the last update) or ``model_ema.pt`` (its moving average).
        labelled: number of labelled cases, whatever the plan's; 0 for all, None for the plan's.
        start_from: arm whose final weights this one begins with; empty for random ones.
        probe: ``"linear"`` keeps the encoder of ``start_from`` as it is and trains the rest from
            random weights; ``"strict"`` trains one 1×1×1 convolution on its feature; else empty.
        evaluate: whether the held-out cases are evaluated; not where nothing learns to segment.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: bool = False
    weights: str = "last.pt"
    labelled: int | None = None
    start_from: str = ""
    probe: str = ""
    evaluate: bool = True


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        bundle: name of the bundle.
        arm: name of the arm.
        labelled: number of labelled cases; 0 for all.
        fold: fold that is held out of the training cases, or -1 for the data set's own split.
        seed: seed of the initial weights, of the order of cases and crops, and of the choice of the
            labelled cases.
    """

    bundle: str
    arm: str
    labelled: int
    fold: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where the run lies below a study's folder."""
        number = f"n{self.labelled}" if self.labelled else "all"
        split = "own_split" if self.fold == OWN_SPLIT else f"fold{self.fold}"
        return Path("runs", self.bundle, self.arm, number, split, f"seed{self.seed}")

    @property
    def pair(self) -> tuple[str, int, int, int]:
        """What runs of different arms share when they may be compared."""
        return self.bundle, self.labelled, self.fold, self.seed


@dataclass(frozen=True)
class Plan:
    """What a study runs.

    Attributes:
        name: name of the study.
        dataset_dir: folder of the data set; empty for the embedded sample.
        bundles: for each bundle the settings that it alone gets.
        table: path of a JSON file with rows for backbones that are rendered for the study; empty
            for none.
        arms: by name; the first one is what the others are compared with.
        settings: settings of ``train.json`` for every run.
        labelled: numbers of labelled cases; 0 for all.
        folds: folds of the training cases, or -1 for the data set's own split.
        seeds: seeds.
        updates: updates (optimizer steps) of every run.
        warmup_updates: updates over which the learning rate rises.
        mod_warmup_updates: updates over which MOD's losses are faded in.
        validations: how often the held-out cases are evaluated in a run, for its curve.
    """

    name: str
    dataset_dir: str
    bundles: Mapping[str, Mapping[str, Any]]
    table: str
    arms: Mapping[str, Arm]
    settings: Mapping[str, Any]
    labelled: tuple[int, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    updates: int
    warmup_updates: int
    mod_warmup_updates: int
    validations: int

    def runs(self) -> Iterator[Run]:
        """All runs: seed by seed, so that a study that is cut short has whole pairs."""
        seen = set()
        for fold, seed, labelled, bundle, arm in itertools.product(
            self.folds, self.seeds, self.labelled, self.bundles, self.arms
        ):
            run = self._run_of(arm, Run(bundle, arm, labelled, fold, seed))
            if not labelled and self._only_adds_scans(arm):
                continue  # no scan is left without labels
            if run not in seen:  # an arm with a number of cases of its own is run once
                seen.add(run)
                yield run

    def _only_adds_scans(self, name: str) -> bool:
        """Whether an arm is of use only where cases are left whose labels are not used."""
        arm = self.arms[name]
        begun_with = any(other.start_from == name for other in self.arms.values())
        return arm.unlabelled and arm.labelled is None and not begun_with

    def source(self, run: Run) -> Run | None:
        """The run whose weights another one begins with, if it does not begin with random ones."""
        name = self.arms[run.arm].start_from
        return self._run_of(name, run) if name else None

    def _run_of(self, arm: str, like: Run) -> Run:
        own = self.arms[arm].labelled
        return replace(like, arm=arm, labelled=like.labelled if own is None else own)

    def settings_of(self, run: Run) -> dict[str, Any]:
        """The settings of ``train.json`` that the plan gives a run."""
        own = {**self.settings, **self.bundles[run.bundle], **self.arms[run.arm].settings}
        return copy.deepcopy(own)  # MONAI's parser rewrites references in what it is given

    def digest(self, run: Run) -> str:
        """What a run depends on, as 16 hexadecimal digits; not where the data lie.

        A finished run counts while this stays the same: arms, seeds and numbers of cases can be
        added to a plan, and what has run is not run again.
        """
        arm = self.arms[run.arm]
        facts = {
            "settings": self.settings_of(run),
            "unlabelled": arm.unlabelled,
            "weights": arm.weights,
            "probe": arm.probe,
            "start_from": self.digest(source) if (source := self.source(run)) else "",
            "data": Path(self.dataset_dir).name,
            "updates": self.updates,
            "warmup_updates": self.warmup_updates,
            "mod_warmup_updates": self.mod_warmup_updates,
        }
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    content = _read(source)
    required = {"bundles", "arms", "updates"}
    optional = {
        *("name", "about", "dataset_dir", "table", "settings", "labelled", "folds", "seeds"),
        *("warmup_updates", "mod_warmup_updates", "validations"),
    }
    if unknown := sorted(set(content) - required - optional):
        known = ", ".join(sorted(required | optional))
        raise SettingsError(f"{source}: unknown {', '.join(unknown)}; a plan has {known}.")
    if lacking := sorted(required - set(content)):
        raise SettingsError(f"{source} lacks {', '.join(lacking)}.")
    updates = whole_number("updates", content["updates"], 1)
    warmup = whole_number("warmup_updates", content.get("warmup_updates", updates // 20))
    settings = _settings(source, "settings", content.get("settings", {}))
    return Plan(
        name=str(content.get("name", source.stem)),
        dataset_dir=_path(source, dataset_dir, content.get("dataset_dir", "")),
        bundles=_bundles(source, content["bundles"]),
        table=_path(source, "", content.get("table", "")),
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


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the plan {path} can't be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"the plan {path} holds a {type(content).__name__}, not an object.")
    return content


def _path(source: Path, given: str, planned: str) -> str:
    if given:
        return os.path.abspath(os.path.expanduser(given))
    if not planned:
        return ""
    return os.path.abspath(source.parent / os.path.expanduser(planned))


def _bundles(source: Path, value: Any) -> dict[str, dict[str, Any]]:
    named = {str(name): {} for name in value} if isinstance(value, list) else value
    if not isinstance(named, dict) or not named:
        raise SettingsError(f"{source}: bundles must be a list of names, or settings by name.")
    return {name: _settings(source, f"bundles: {name}", own) for name, own in named.items()}


def _arms(source: Path, value: Any) -> dict[str, Arm]:
    if not isinstance(value, dict) or not value:
        raise SettingsError(f"{source}: arms must be settings by name, the baseline first.")
    arms = {}
    for name, own in value.items():
        where = f"{source}: arms: {name}"
        settings = _settings(source, f"arms: {name}", own)
        facts = {key: settings.pop(key) for key in OF_AN_ARM if key in settings}
        for key, allowed in (("weights", WEIGHTS), ("probe", PROBES)):
            if facts.get(key, allowed[0]) not in allowed:
                words = ", ".join(repr(word) for word in allowed)
                raise SettingsError(f"{where}: {key} must be one of {words}, got {facts[key]!r}.")
        if facts.get("labelled") is not None:
            facts["labelled"] = whole_number(f"{where}: labelled", facts["labelled"])
        if facts.get("probe") and not facts.get("start_from"):
            raise SettingsError(f"{where}: a probe needs start_from, the arm that it probes.")
        # only arms before this one: what a run begins with is then always there when it starts
        if (begun := facts.get("start_from", "")) and begun not in arms:
            raise SettingsError(f"{where}: start_from must name an arm before it, got {begun!r}.")
        arms[name] = Arm(settings, **facts)
    return arms


def _settings(source: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{source}: {where} must be an object of settings, got {value!r}.")
    if taken := sorted(set(value) & set(OWN_SETTINGS)):
        raise SettingsError(
            f"{source}: {where} can't set {', '.join(taken)}: the study gives them to each run. "
            "Lengths are counted in updates (updates, warmup_updates, mod_warmup_updates)."
        )
    return dict(value)


def _numbers(source: Path, name: str, value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise SettingsError(f"{source}: {name} must be a list of whole numbers.")
    numbers = [whole_number(f"{source}: {name}", item, least) for item in value]
    if len(set(numbers)) != len(numbers):
        raise SettingsError(f"{source}: {name} names a number twice.")
    return tuple(numbers)
