"""``models/training.json``, which the network is built from and the bundle rendered from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from monai.networks import nets
from torch import nn

from mod_components import networks
from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.checks.code import HOME, PACKAGE
from mod_components.release.render import MONAI_NETS, backbones

__all__ = ["RECORD", "check_record", "same_network", "short_name"]

RECORD = "models/training.json"
INFERENCE = "configs/inference.json"
MODEL = "models/model.pt"
COPY = "copy it from the folder of the training"


def check_record(bundle: Bundle) -> list[Problem]:
    """Find a record that is another bundle's, or that names more than numbers and words.

    What it says is rendered into configs, whose strings MONAI evaluates: nothing may be rendered
    from it, or built, before it has passed.

    Args:
        bundle: the bundle.
    """
    if RECORD not in bundle.entries:
        needed = bundle.package or bundle.packed or MODEL in bundle.entries
        return [Problem("record", RECORD, f"is missing; {COPY}")] if needed else []
    if RECORD not in bundle.documents:
        return []  # no JSON: reported by the checks of texts
    settings = bundle.object(RECORD).get("settings")
    if not isinstance(settings, dict):
        return [Problem("record", RECORD, f"has no object 'settings'; {COPY}")]
    messages = [*_settings(settings, bundle), *_network(settings, bundle)]
    return [Problem("record", RECORD, message) for message in messages]


def short_name(bundle: Bundle) -> str:
    """The bundle's name in the table of backbones; empty where it is not there.

    Args:
        bundle: the bundle.
    """
    name = bundle.folder.name
    short = name.removesuffix("_mod")
    return short if short != name and short in backbones() else ""


def same_network(first: str, second: str) -> bool:
    """Whether two ``_target_`` name one class: bare or MONAI's path, ours under either name.

    Args:
        first: one of them.
        second: the other.
    """
    return _plain(first) == _plain(second)


def _settings(settings: Mapping[str, Any], bundle: Bundle) -> Iterator[str]:
    name = bundle.folder.name
    if settings.get("bundle") != name:
        yield (
            f"is of a training of {settings.get('bundle')!r}, and the bundle is {name}; take the "
            "weights and the record of one training of it"
        )
    overlap = settings.get("overlap", 0.5)
    if not _is_number(overlap) or not 0 <= overlap < 1:
        yield f"has {overlap!r} for 'settings#overlap', not a number from 0 to below 1; {COPY}"
    row = backbones().get(short_name(bundle), {})
    roi_size = settings.get("roi_size", [128, 128, 128])
    if not _sides(roi_size):
        yield f"has {roi_size!r} for 'settings#roi_size', not three whole numbers; {COPY}"
    elif row and _of_row(settings, row) and not _fits(roi_size, row):
        yield (
            f"has {roi_size} for 'settings#roi_size'; the network takes multiples of "
            f"{row['size_multiple']}, the largest at least {row['smallest_size']}; {COPY}"
        )
    own = row.get("network_settings", {})
    kinds = {**own, "tap": "", "mask_cell": 1}
    for key in [key for key in kinds if key in settings]:
        if not _is_plain(settings[key]) or not _alike(settings[key], kinds[key]):
            yield (
                f"has {settings[key]!r} for 'settings#{key}', which is of another type than the "
                f"network's own, {kinds[key]!r}; {COPY}"
            )


def _network(settings: Mapping[str, Any], bundle: Bundle) -> Iterator[str]:
    network = settings.get("network")
    target = network.get("target") if isinstance(network, dict) else None
    if not isinstance(target, str):
        yield f"has no 'settings#network#target'; {COPY}"
        return
    definition = bundle.object(INFERENCE).get("network_def")
    built = definition.get("_target_") if isinstance(definition, dict) else None
    if not _known_network(target):
        yield f"names {target!r}, no network of MONAI's or of this project; train one of these"
    elif isinstance(built, str) and not same_network(target, built):
        yield (
            f"is of a training of {target}, and {INFERENCE} builds {built}; take the weights and "
            "the record of one training, and the bundle of that network"
        )
    for key, value in dict(network or {}).items():
        if key != "target" and not (key.isidentifier() and key[0] != "_" and _is_plain(value)):
            yield f"has more than numbers and words in 'settings#network#{key}'; {COPY}"


@cache
def _known_network(target: str) -> bool:
    """Whether it is the class of a network: whatever else MONAI finds by a name could do harm."""
    if target.partition(".")[0] == HOME or PACKAGE.fullmatch(target.partition(".")[0]):
        parts = target.split(".")
        found = getattr(networks, parts[2], None) if parts[1:2] == ["networks"] else None
        known = len(parts) == 3
    else:
        name = target.removeprefix(MONAI_NETS)
        found, known = getattr(nets, name, None), name.isidentifier()
    return known and isinstance(found, type) and issubclass(found, nn.Module)


def _is_plain(value: Any) -> bool:
    """Whether MONAI would take a value as it stands, with nothing in it to look up or build."""
    if isinstance(value, dict):
        return all(
            key.isidentifier() and key[0] != "_" and _is_plain(v) for key, v in value.items()
        )
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or bool(re.fullmatch(r"[\w. -]*", value))


def _alike(value: Any, own: Any) -> bool:
    if isinstance(own, str):
        return isinstance(value, str)
    if isinstance(own, bool):
        return isinstance(value, bool)
    # one number, or one a level
    return all(map(_is_number, value)) if isinstance(value, list) else _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sides(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_side, value))


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _of_row(settings: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    network = settings.get("network")
    target = network.get("target") if isinstance(network, dict) else ""
    return same_network(str(target), row["network_def"]["_target_"])


def _fits(sides: Sequence[int], row: Mapping[str, Any]) -> bool:
    multiples = all(side % row["size_multiple"] == 0 for side in sides)
    return multiples and max(sides) >= row["smallest_size"]


def _plain(target: str) -> str:
    package, _, rest = target.removeprefix(MONAI_NETS).partition(".")
    if PACKAGE.fullmatch(package):
        return f"{HOME}.{rest}"
    return target.removeprefix(MONAI_NETS)
