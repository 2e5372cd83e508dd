"""An exponential average of the whole network's weights, to be evaluated beside the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle

from mod_components.errors import SettingsError
from mod_components.files import save_tensors
from mod_components.mod.step import MODHandler, step_was_made
from mod_components.networks import plain_module

__all__ = ["WeightAverage"]


class WeightAverage(MODHandler):
    """Keeps an exponential average of all weights and writes it to ``model_ema.pt`` each epoch.

    PyTorch's ``AveragedModel`` as a handler. The file has the form of ``model.pt``; evaluate it
    with ``--checkpoint``. It changes nothing in the training.

    Args:
        network: the network in training, wrapped or not.
        ckpt_dir: folder of the file.
        momentum: share of the old average that an optimizer step keeps.
    """

    NOTED = ("momentum",)

    network: nn.Module
    _hook: RemovableHandle | None

    def __init__(
        self, network: nn.Module, ckpt_dir: str | os.PathLike[str], momentum: float = 0.999
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise SettingsError(f"ema_momentum must lie between 0 and 1, got {momentum}.")
        self.refer(network=network, _hook=None)
        self.path = Path(ckpt_dir) / "model_ema.pt"
        self.momentum = momentum
        self.average: AveragedModel | None = None

    def attach(self, engine: SupervisedTrainer) -> None:
        """Copy at the start, follow each optimizer step, write after each epoch."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def build(self) -> AveragedModel:
        """Copy the network (once)."""
        if self.average is None:
            average = get_ema_multi_avg_fn(self.momentum)
            self.average = AveragedModel(plain_module(self.network), multi_avg_fn=average)
            self.average.requires_grad_(False)
        return self.average

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore the average, making it first when training has not started yet."""
        self.build()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _start(self, engine: SupervisedTrainer) -> None:
        average = self.build()
        if self._hook is not None:
            self._hook.remove()
        network = plain_module(self.network)

        def follow(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if step_was_made(optimizer):
                average.update_parameters(network)

        self.refer(_hook=engine.optimizer.register_step_post_hook(follow))

    def _save(self, _engine: SupervisedTrainer) -> None:
        weights = self.build().module.state_dict()
        # the checkpoint's handler ends a run whose weights are lost; what is there stays as it is
        whole = all(bool(x.isfinite().all()) for x in weights.values() if x.is_floating_point())
        if idist.get_rank() == 0 and whole:
            save_tensors(weights, self.path)
