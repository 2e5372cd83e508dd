"""Scores, summaries, comparisons and pictures of finished segmentations; knows nothing of MOD."""

from __future__ import annotations

from mod_components.evaluation.tuning import refuse_own_cases

__all__ = ["refuse_own_cases"]
