"""What a study runs: bundles, arms, numbers of labelled cases, folds and seeds."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["AVERAGED", "LAST_STATE", "OWN_SPLIT", "Arm", "Plan", "Run"]

OWN_SPLIT = -1
"""The fold that stands for the data set's own split."""
LAST_STATE = "last.pt"
"""The file whose network is the one after the last update."""
AVERAGED = "model_ema.pt"
"""The file of its moving average."""


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
    weights: str = LAST_STATE
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
        rows: the table's rows of the plan's bundles, by short name.
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
    rows: Mapping[str, Any]
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

    def only_add_scans(self) -> list[str]:
        """Arms that are of use only where cases are left whose labels are not used."""
        return [name for name in self.arms if self._only_adds_scans(name)]

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
        facts: dict[str, Any] = {
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
        if (row := self.rows.get(run.bundle.removesuffix("_mod"))) is not None:
            facts["row"] = row
        if not arm.evaluate:
            facts["evaluate"] = False
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
