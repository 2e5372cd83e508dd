"""What leaves the house: rendered, packed and verified bundles."""

from __future__ import annotations

from mod_components.release.render import backbones, render, render_bundle

__all__ = ["backbones", "render", "render_bundle"]
