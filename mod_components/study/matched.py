"""Whether the runs of a study may stand beside each other, as far as their records tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mod_components.study.plan import Plan
from mod_components.study.results import Finished, count_name, grouped, network_name
from mod_components.study.statistics import pairs_of

__all__ = ["unlike_settings", "unmatched"]

# what differs between runs of one arm: seed, fold, and what follows from the number of cases
_OF_A_RUN = {
    *("seed", "fold", "training_cases", "validation_cases", "unlabelled_cases"),
    *("epochs", "val_interval", "warmup_epochs", "mod_warmup_epochs"),
}

_WORK: dict[str, Callable[[Finished], Any]] = {
    "updates": lambda run: run.updates,
    "crops an update": lambda run: int(run.settings.get("batch_size") or 0),
    "voxels a crop": lambda run: math.prod(run.settings.get("roi_size") or [0]),
    "device": lambda run: run.settings.get("device"),
    "precision": lambda run: run.settings["amp_dtype"] if run.settings.get("amp") else "float32",
}


def unlike_settings(runs: Sequence[Finished]) -> Iterator[tuple[str, list[str]]]:
    """Arms of which some runs had other settings than others.

    A plan's runs of one arm are alike but for what the plan varies, unless a default of the package
    changed while the study ran: the plan does not name it, so nothing else tells.

    Args:
        runs: the runs.

    Yields:
        Network and arm, and the names of the settings, those of MOD's components as
        ``mod#tokenizer#alpha``.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for found in runs:
        groups.setdefault((found.run.bundle, found.run.arm), []).append(_flat(found.settings))
    for (bundle, arm), settings in groups.items():
        names = [
            name
            for name in sorted(set().union(*settings))
            if name.rpartition("#")[2] not in _OF_A_RUN
            and len({json.dumps(own.get(name), sort_keys=True) for own in settings}) > 1
        ]
        if names:
            yield f"{network_name(bundle)}, {arm}", names


def unmatched(runs: Sequence[Finished], plan: Plan) -> Iterator[str]:
    """Arms that did not do the same work, on the same kind of device, as the baseline.

    Args:
        runs: the runs.
        plan: the plan; its first arm is the baseline.

    Yields:
        One line of text for each network, number of labelled cases and arm.
    """
    baseline = next(iter(plan.arms))
    for (bundle, labelled), group in grouped(runs).items():
        for arm, pairs in pairs_of(group, baseline).items():
            where = f"{network_name(bundle)}, {count_name(labelled)} labelled, {arm}"
            for what, of in _WORK.items():
                found = {(of(first), of(second)) for first, second in pairs}
                known = (pair for pair in found if None not in pair)  # records of old note less
                for theirs, own in sorted(pair for pair in known if pair[0] != pair[1]):
                    yield f"{where}: {own} {what} beside {baseline}'s {theirs}"
            source = plan.arms[arm].start_from
            if source and not plan.arms[arm].probe:
                yield f"{where}: the updates of {source}, with which it begins, come on top"


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{above}{key}#") if isinstance(value, dict) else {above + key: value}
    return found
