"""Scores, summaries, comparisons and pictures of finished segmentations; knows nothing of MOD."""

from __future__ import annotations
