"""The finished runs of a study, read from their records."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mod_components.data.records import REGIONS
from mod_components.errors import DataError
from mod_components.study.plan import LAST_STATE, Plan, Run
from mod_components.study.plan_file import PLAN, read_plan
from mod_components.study.record import FINISHED, MIXED

__all__ = [
    "METRICS",
    "Finished",
    "Point",
    "StudyResults",
    "by_arm",
    "by_bundle",
    "count_name",
    "grouped",
    "known_mean",
    "network_name",
    "read_finished",
    "read_study",
    "thread_name",
]

METRICS = ("dice", "hd95")
"""What a report speaks of: Dice (fractions of 1) and HD95 (mm)."""


@dataclass(frozen=True)
class Point:
    """A validation during a training.

    Attributes:
        update: updates made until then.
        seconds: seconds of training until then, validations left out.
        dice: mean Dice of the three regions over the held-out cases, 0 to 1.
    """

    update: int
    seconds: float
    dice: float


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        run: which one of the plan.
        training: number of labelled cases that it trained with.
        training_ids: their ids; empty in records of old.
        updates: updates made.
        seconds: seconds of training, validations left out.
        threads: threads of torch; 0 where it was cut and went on with others.
        probe: how a frozen encoder was probed, ``"linear"`` or ``"strict"``: such runs stand apart
            from the others; else empty.
        curve: its validations, and its end, where the last one was before that: with the scores'
            mean Dice, if those are of the network that was validated.
        losses: of epochs spread over the training, by column of ``train.csv``, and the ``update``.
        scores: of the network after the last update, by case and then by ``<metric>_<region>``;
            nan where undefined. Empty for an arm that the plan does not evaluate.
        settings: settings of its training.
        versions: versions that it ran with.
    """

    run: Run
    training: int
    training_ids: tuple[str, ...]
    updates: int
    seconds: float
    threads: int
    probe: str
    curve: tuple[Point, ...]
    losses: tuple[Mapping[str, float], ...]
    scores: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    def by_case(self, metric: str) -> dict[str, float]:
        """A figure of every case.

        Args:
            metric: ``dice`` or ``hd95`` for the mean of a case's regions that are defined, or with
                a region, such as ``dice_tc``.

        Returns:
            Fractions of 1 or mm, by case; nan where it is undefined.
        """
        columns = _columns(metric) if metric in METRICS else [metric]
        values = np.array([[row[name] for name in columns] for row in self.scores.values()])
        return dict(zip(self.scores, known_mean(values, axis=1).tolist(), strict=True))

    def mean(self, metric: str) -> float:
        """A figure's mean over the cases in which it is defined; nan without one.

        Args:
            metric: as of :meth:`by_case`.
        """
        return float(known_mean(np.array(list(self.by_case(metric).values())), axis=0))


@dataclass(frozen=True)
class StudyResults:
    """What a study has found so far.

    Attributes:
        plan: its plan.
        name: its name.
        about: the question that it asks, in its author's words.
        runs: what is finished, in the order of tables: by bundle, number of labelled cases (all of
            them last), arm, fold and seed.
        changed: folders of runs that were made by other settings than the plan's.
    """

    plan: Plan
    name: str
    about: str
    runs: tuple[Finished, ...]
    changed: tuple[str, ...]

    @property
    def planned(self) -> tuple[Run, ...]:
        """All runs of the plan, in the order of :attr:`runs`."""
        return tuple(_in_order(self.plan))


def known_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean of what is not nan along an axis; nan, without a warning, where nothing is left."""
    known = ~np.isnan(values)
    number = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def grouped(runs: Iterable[Finished]) -> dict[tuple[str, int], list[Finished]]:
    """Runs by bundle and number of labelled cases, in their order."""
    groups: dict[tuple[str, int], list[Finished]] = {}
    for found in runs:
        groups.setdefault((found.run.bundle, found.run.labelled), []).append(found)
    return groups


def by_arm(runs: Iterable[Finished]) -> dict[str, list[Finished]]:
    """Runs by arm, in their order."""
    arms: dict[str, list[Finished]] = {}
    for found in runs:
        arms.setdefault(found.run.arm, []).append(found)
    return arms


def by_bundle(runs: Iterable[Finished]) -> dict[str, list[Finished]]:
    """Runs by bundle, in their order."""
    bundles: dict[str, list[Finished]] = {}
    for found in runs:
        bundles.setdefault(found.run.bundle, []).append(found)
    return bundles


def count_name(labelled: int) -> str:
    """A number of labelled cases in words: "all" for 0."""
    return str(labelled) if labelled else "all"


def thread_name(threads: int) -> str:
    """A number of threads in words: "mixed" for a run that was cut and went on with others."""
    return "mixed" if threads == MIXED else str(threads)


def network_name(bundle: str) -> str:
    """A bundle's network: arms without MOD are runs of a bundle called ``_mod``, too."""
    return bundle.removesuffix("_mod")


def read_study(study: str | os.PathLike[str]) -> StudyResults:
    """Read a study's plan and the records of its finished runs.

    Runs that are not finished, or not in the plan, do not count.

    Args:
        study: the study's folder.

    Raises:
        DataError: if the plan or the record of a finished run is damaged.
        SettingsError: if something in the plan is unknown, lacking or out of range.
    """
    root = Path(study)
    plan = read_plan(root / PLAN)
    content = json.loads((root / PLAN).read_text(encoding="utf-8"))
    runs, changed = [], []
    for run in _in_order(plan):
        path = root / run.folder / FINISHED
        if path.is_file():
            found, digest = read_finished(path, run, plan.arms[run.arm].evaluate)
            runs.append(_to_its_end(found) if plan.arms[run.arm].weights == LAST_STATE else found)
            if digest not in _digests(plan, found):
                changed.append(run.folder.as_posix())
    return StudyResults(
        plan=plan,
        name=str(content.get("name") or Path(os.path.abspath(root)).name),
        about=str(content.get("about", "")),
        runs=tuple(runs),
        changed=tuple(changed),
    )


def read_finished(path: Path, run: Run, evaluated: bool = True) -> tuple[Finished, str]:
    """Read the record of one finished run.

    Args:
        path: its ``finished.json``.
        run: which run it should be.
        evaluated: whether it must have scores.

    Returns:
        The run and the digest of the plan that it was made by.

    Raises:
        DataError: if it can't be read, lacks something or is of another run.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = Run(**{key: content[key] for key in vars(run)})
        if named != run:
            raise ValueError(f"it is of {named.folder.as_posix()}")
        if evaluated and not content["scores"]:
            raise ValueError("it has no scores")
        return _finished(content, run), str(content["digest"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove {path.parent} and run "
            "the study again."
        ) from error


def _finished(content: Mapping[str, Any], run: Run) -> Finished:
    updates = int(content["updates"])
    if updates < 1:
        raise ValueError("it has no updates")
    points = [
        Point(int(row["update"]), _number(row["seconds"]), _number(row["val_mean_dice"]))
        for row in content["curve"]
    ]
    columns = [column for metric in METRICS for column in _columns(metric)]
    return Finished(
        run=run,
        training=int(content["training"] or 0),
        training_ids=tuple(map(str, content.get("training_ids", ()))),
        updates=updates,
        seconds=_number(content["training_seconds"]),
        threads=int(content["threads"]),
        probe=str(content.get("probe") or ""),
        curve=tuple(point for point in points if not math.isnan(point.dice)),
        losses=tuple(
            {str(name): _number(value) for name, value in row.items()} for row in content["losses"]
        ),
        scores={
            str(case): {column: _number(row[column]) for column in columns}
            for case, row in sorted(content["scores"].items())
        },
        settings=dict(content["settings"]),
        versions=dict(content["versions"]),
    )


def _to_its_end(found: Finished) -> Finished:
    """A run whose curve has its last update: validations lie a whole number of epochs apart."""
    if not found.scores or not found.curve or found.curve[-1].update >= found.updates:
        return found
    end = Point(found.updates, found.seconds, found.mean("dice"))
    return found if math.isnan(end.dice) else replace(found, curve=(*found.curve, end))


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _columns(metric: str) -> list[str]:
    return [f"{metric}_{region.lower()}" for region in REGIONS]


def _size(labelled: int) -> float:
    return labelled or math.inf


def _in_order(plan: Plan) -> list[Run]:
    """The plan's runs in the order of tables."""
    bundles, arms = list(plan.bundles), list(plan.arms)

    def place(run: Run) -> tuple[float, ...]:
        own = (bundles.index(run.bundle), _size(run.labelled), arms.index(run.arm))
        return (*own, run.fold, run.seed)

    return sorted(plan.runs(), key=place)


def _digests(plan: Plan, found: Finished) -> set[str]:
    """Digests that stand for the plan: its data set may have been named on the command line."""
    elsewhere = replace(plan, dataset_dir=str(found.settings.get("dataset_dir", "")))
    return {plan.digest(found.run), elsewhere.digest(found.run)}
