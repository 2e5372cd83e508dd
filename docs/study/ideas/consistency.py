"""A trial, no part of MOD: the average of the network labels the unlabelled crops.

The "mean teacher" (Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780) on the views that
MOD draws anyway: the averaged network segments an unlabelled crop as it is, and the network must
give the same from a masked view of it. A plan puts it in the place of ``mod#average``; the folder
of this file must be on Python's path.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from mod_components.mod import MaskedViews, WeightAverage
from mod_components.mod.step import loss_share
from mod_components.mod.views import unlabelled_crops


class SegmentationConsistency(WeightAverage):
    """Adds weight · ramp · mean (σ(f(masked view)) − σ(f̄(crop)))² over the unlabelled crops.

    Args:
        network: the network in training.
        ckpt_dir: folder of ``model_ema.pt``.
        views: draws the masked views.
        momentum: of the average f̄.
        weight: weight of the loss.
        warmup_epochs: length of the ramp.
    """

    views: MaskedViews

    def __init__(
        self,
        network: nn.Module,
        ckpt_dir: str | os.PathLike[str],
        views: MaskedViews,
        momentum: float = 0.97,
        weight: float = 1.0,
        warmup_epochs: float = 2,
    ) -> None:
        super().__init__(network, ckpt_dir, momentum)
        self.refer(views=views)
        self.weight, self.warmup_epochs = weight, warmup_epochs

    def attach(self, engine: SupervisedTrainer) -> None:
        """Follow the network as the average does, and add the loss."""
        super().attach(engine)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_loss)

    def loss(self, crops: Tensor, masked: Tensor) -> Tensor:
        """Mean squared difference of the two networks' probabilities.

        Args:
            crops: images (U, C, D, H, W) for the averaged network.
            masked: the same, masked, for the network in training.
        """
        with torch.no_grad():
            target = self.build().module(crops).sigmoid()
        return (self.network(masked).sigmoid() - target).square().mean()

    def _add_loss(self, engine: SupervisedTrainer) -> None:
        like: Tensor = engine.state.output["image"]
        found: Any = unlabelled_crops(engine, like)
        if found is None:
            return
        crops, keys = found
        views, masks = self.views.draw(crops, engine.state.iteration, keys)
        first = views[: len(crops)], masks[: len(crops)]
        fill = self.views.fill[:, None, None, None].detach()
        loss = self.loss(crops, first[0] * (1 - first[1]) + fill * first[1])
        share = self.weight * loss_share(engine, self.warmup_epochs)
        engine.state.output["loss"] = engine.state.output["loss"] + share * loss
        engine.state.output["loss_consistency"] = loss.detach()
