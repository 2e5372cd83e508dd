"""The tap, which reads a feature from any network."""

from __future__ import annotations

from mod_components.networks.tap import Tap, plain_module

__all__ = ["Tap", "plain_module"]
