"""The tap, which reads a feature from any network, and the networks that MONAI lacks."""

from __future__ import annotations

from mod_components.networks.prepare import compile_all, is_compiled, prepare_network
from mod_components.networks.probe import PointProbe, encoder_modules, freeze, probe_tap
from mod_components.networks.segmamba import SegMamba
from mod_components.networks.side_pass import parts
from mod_components.networks.tap import Tap, plain_module
from mod_components.networks.unetr import ShallowUNETR
from mod_components.networks.unetr_pp import UNETRPP
from mod_components.networks.unused import freeze_unused, unused_parameters, without_values
from mod_components.networks.vit import ViTSegmenter

__all__ = [
    "UNETRPP",
    "PointProbe",
    "SegMamba",
    "ShallowUNETR",
    "Tap",
    "ViTSegmenter",
    "compile_all",
    "encoder_modules",
    "freeze",
    "freeze_unused",
    "is_compiled",
    "parts",
    "plain_module",
    "prepare_network",
    "probe_tap",
    "unused_parameters",
    "without_values",
]
