"""The rows of the table of backbones, with networks small enough for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from monai.bundle import ConfigParser
from torch import nn

from mod_components.mod import (
    DensePredictor,
    EMATeacher,
    MaskedViews,
    MODHandler,
    OnlineTokenizer,
)
from mod_components.release import backbones

BACKBONES = tuple(backbones())


def two_quick(quick: Sequence[str] = ("swinunetr", "unetrpp")) -> list[Any]:
    """All backbones for ``parametrize``, of which CI takes two that differ in all that matters."""
    slow = pytest.mark.slow
    return [name if name in quick else pytest.param(name, marks=slow) for name in BACKBONES]


def small_settings(name: str) -> dict[str, Any]:
    """Settings that make a bundle's network small, for tests alone."""
    return dict(backbones()[name]["test_settings"])


def needs_package(name: str) -> bool:
    """Whether the network is one of ours, not MONAI's."""
    return str(backbones()[name]["network_def"]["_target_"]).startswith("mod_components.")


def build_network(name: str, roi_size: Sequence[int], small: bool = True) -> nn.Module:
    """A backbone as its row defines it, for crops of ``roi_size`` voxels."""
    row = backbones()[name]
    settings = {**row["network_settings"], **(row["test_settings"] if small else {})}
    config = {**settings, "roi_size": list(roi_size), "network_def": row["network_def"]}
    network = ConfigParser(config).get_parsed_content("network_def")
    assert isinstance(network, nn.Module)
    return network


def build_mod(
    name: str, network: nn.Module, roi_size: Sequence[int], **views: Any
) -> dict[str, MODHandler]:
    """All of MOD as a backbone's row defines it, at full weight from the first step."""
    row = backbones()[name]
    cell = {"mask_cell": row["mask_cell"], "layer_norm": row["tap_layer_norm"]}
    masked = MaskedViews(network, row["tap"], roi_size, **cell, **views)
    teacher = EMATeacher(masked)
    return {
        "views": masked,
        "teacher": teacher,
        "tokenizer": OnlineTokenizer(teacher, warmup_epochs=0),
        "predictor": DensePredictor(masked, warmup_epochs=0),
    }
