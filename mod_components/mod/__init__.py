"""MOD as Ignite handlers for MONAI's ``SupervisedTrainer``."""

from __future__ import annotations

from mod_components.mod.attach import Attach, noted, parameter_groups, state_objects
from mod_components.mod.average import WeightAverage
from mod_components.mod.predictor import DensePredictor
from mod_components.mod.step import MODHandler, MODStep
from mod_components.mod.teacher import EMATeacher
from mod_components.mod.tokenizer import OnlineTokenizer
from mod_components.mod.views import MaskedViews

__all__ = [
    "Attach",
    "DensePredictor",
    "EMATeacher",
    "MODHandler",
    "MODStep",
    "MaskedViews",
    "OnlineTokenizer",
    "WeightAverage",
    "noted",
    "parameter_groups",
    "state_objects",
]
