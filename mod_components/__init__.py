"""MOD for MONAI: training-only handlers that teach a 3D segmenter more from few labelled scans."""

from __future__ import annotations

__version__ = "0.1.0"
