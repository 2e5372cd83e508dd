"""Re-seeds everything random at each epoch's start, so that nothing random needs to be saved."""

from __future__ import annotations

import random

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from torch.utils.data import Dataset

__all__ = ["Reseed", "epoch_seed"]


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Mix seed, epoch and process into one 32-bit seed.

    Args:
        seed: the run's seed.
        epoch: the epoch, from 1.
        rank: number of the process.
    """
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


class Reseed:
    """Seeds torch, random, numpy and MONAI's transforms from (seed, epoch, rank).

    A run resumed at an epoch's start then draws what an uninterrupted one would have drawn. The
    data loader must make its workers anew each epoch (``persistent_workers`` false, the default).

    Args:
        seed: the run's seed.
        dataset: the training data set, whose random transforms are seeded too.
    """

    def __init__(self, seed: int, dataset: Dataset | None = None) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Seed at the start of each epoch, before the data loader begins it.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed for the epoch that starts."""
        rank = idist.get_rank()
        seed = epoch_seed(self.seed, engine.state.epoch, rank)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if self.dataset is not None:
            set_rnd(self.dataset, seed)
