"""Ignite handlers that know nothing of MOD: checkpoints, seeds, logs, pictures, reports."""

from __future__ import annotations

from mod_components.handlers.checkpoint import Checkpoint, load_weights
from mod_components.handlers.html_report import HTMLReport
from mod_components.handlers.logs import TrainingLog, ValidationLog, loss_terms
from mod_components.handlers.preview import Preview
from mod_components.handlers.reports import EvaluationReport
from mod_components.handlers.seeding import Reseed

__all__ = [
    "Checkpoint",
    "EvaluationReport",
    "HTMLReport",
    "Preview",
    "Reseed",
    "TrainingLog",
    "ValidationLog",
    "load_weights",
    "loss_terms",
]
