"""Ignite handlers that know nothing of MOD: a guard, checkpoints, seeds, logs, reports."""

from __future__ import annotations

from mod_components.handlers.checkpoint import Checkpoint
from mod_components.handlers.guard import Guard
from mod_components.handlers.html_report import HTMLReport
from mod_components.handlers.logs import TrainingLog, ValidationLog, loss_terms
from mod_components.handlers.preview import Preview
from mod_components.handlers.reports import EvaluationReport
from mod_components.handlers.seeding import Reseed
from mod_components.handlers.start import start_weights
from mod_components.handlers.weights import load_weights

__all__ = [
    "Checkpoint",
    "EvaluationReport",
    "Guard",
    "HTMLReport",
    "Preview",
    "Reseed",
    "TrainingLog",
    "ValidationLog",
    "load_weights",
    "loss_terms",
    "start_weights",
]
