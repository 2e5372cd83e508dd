"""What a training's own record tells of the data behind its weights, and of its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mod_components.data.prepare import LISTED, SAMPLE
from mod_components.data.records import BRATS, BRATS2023, MSD

__all__ = [
    "UNKNOWN",
    "data_text",
    "earlier",
    "figures",
    "on_sample_alone",
    "origin_text",
    "validated_on_sample",
]

UNKNOWN = "unknown"
LAYOUTS = {
    BRATS: "layout of BraTS 2018 to 2022",
    BRATS2023: "layout of BraTS 2023 and later",
    MSD: "layout of the Medical Segmentation Decathlon",
}


def earlier(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trainings that made the weights which this one began with, the earliest first.

    Args:
        training: content of ``training.json``.

    Returns:
        Their ``dataset_dir``, ``training_cases`` and ``epochs``; none for a training from scratch.
    """
    found = list(training.get("history", []))
    if not found and training["settings"].get("pretrained"):
        return [{"dataset_dir": UNKNOWN}]
    return found


def validated_on_sample(training: Mapping[str, Any]) -> bool:
    """Whether the figures are of synthetic brains.

    Args:
        training: content of ``training.json``.
    """
    return bool(training["settings"].get("dataset_dir") == SAMPLE)


def on_sample_alone(training: Mapping[str, Any]) -> bool:
    """Whether the weights have seen nothing but synthetic brains, in earlier trainings too.

    Args:
        training: content of ``training.json``.
    """
    return validated_on_sample(training) and all(
        one.get("dataset_dir") == SAMPLE for one in earlier(training)
    )


def data_text(training: Mapping[str, Any]) -> str:
    """The data that the last training ran on, in words that fit behind "on".

    Args:
        training: content of ``training.json``.
    """
    settings = training["settings"]
    name = settings.get("dataset_dir", UNKNOWN)
    if name in (SAMPLE, UNKNOWN):
        return _name_text(name)
    layout = LAYOUTS.get(settings.get("layout", ""), "layout not recorded")
    return f"{_name_text(name)} ({layout})"


def origin_text(training: Mapping[str, Any]) -> str:
    """The same, with the data of the trainings before it.

    Args:
        training: content of ``training.json``.
    """
    before = [_step_text(one) for one in earlier(training)]
    if not before:
        return data_text(training)
    return f"{data_text(training)}, from weights trained on {', then on '.join(before)}"


def figures(training: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers: JSON has no other, and nan is no result.

    Args:
        training: content of ``training.json``.
    """
    metrics = training.get("metrics", {})
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _name_text(name: str | None) -> str:
    if name == SAMPLE:
        return "the embedded sample of synthetic brains, computed by this project"
    if name == LISTED:
        return "cases listed by another program, such as MONAI Label"
    if not name or name == UNKNOWN:
        return "data of which nothing is recorded"
    return f"the data set in the folder {name}"


def _step_text(one: Mapping[str, Any]) -> str:
    counts = [
        f"{one[key]} {word}"
        for key, word in (("training_cases", "cases"), ("epochs", "epochs"))
        if one.get(key) is not None
    ]
    name = _name_text(one.get("dataset_dir"))
    return f"{name} ({', '.join(counts)})" if counts else name
