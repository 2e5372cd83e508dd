"""Comparison of finished runs."""

from __future__ import annotations

from mod_components.study.curves import plot_curves, read_curves

__all__ = ["plot_curves", "read_curves"]
