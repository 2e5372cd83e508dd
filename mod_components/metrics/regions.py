"""Scores per case and tumour region as Ignite metrics, for MONAI's evaluators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from mod_components.data.records import REGIONS
from mod_components.metrics.masks import spacing_of
from mod_components.metrics.overlap import dice
from mod_components.metrics.surface import hd95

__all__ = ["RegionDice", "RegionHD95", "RegionScores"]


class RegionScores(CumulativeIterationMetric):
    """Collects a score of every case, as MONAI's cumulative metrics do, over all processes.

    Args:
        score: takes predicted and true masks (C, D, H, W) and the spacing in mm, gives (C,).
        region: one of :data:`REGIONS`, or ``None`` for all of them.

    Raises:
        ValueError: if ``region`` is none of :data:`REGIONS`.
    """

    def __init__(
        self,
        score: Callable[[Tensor, Tensor, Sequence[float]], Tensor],
        region: str | None = None,
    ) -> None:
        super().__init__()
        if region is not None and region not in REGIONS:
            raise ValueError(f"region must be one of {', '.join(REGIONS)} or None, got {region!r}.")
        self.score = score
        channel = 0 if region is None else REGIONS.index(region)
        self.channels = slice(None) if region is None else slice(channel, channel + 1)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Scores (B, 3) or (B, 1) of a batch of masks (B, 3, D, H, W)."""
        if y is None:
            raise ValueError("a score needs the true masks, and the label is missing.")
        if y.ndim != 5 or y.shape[1] != len(REGIONS):
            raise ValueError(f"masks must be (B, {len(REGIONS)}, D, H, W), got {tuple(y.shape)}.")
        spacings = _spacing_per_case(y, y_pred)
        y_pred, y = (m.as_tensor() if isinstance(m, MetaTensor) else m for m in (y_pred, y))
        return torch.stack(
            [
                self.score(p[self.channels], t[self.channels], spacing)
                for p, t, spacing in zip(y_pred, y, spacings, strict=True)
            ]
        )

    def aggregate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Mean over cases and regions, a 0-d tensor.

        Raises:
            ValueError: if no case has been seen.
        """
        scores = self.get_buffer()  # (cases, regions), of all processes
        if scores is None:
            raise ValueError("no case has been scored: was the data loader empty?")
        return scores.mean()


def _spacing_per_case(*batches: Tensor) -> list[tuple[float, float, float]]:
    """Voxel sizes of a batch (B, C, D, H, W): from the first MetaTensor, one affine or B."""
    size = batches[0].shape[0]
    for batch in batches:
        if isinstance(batch, MetaTensor) and batch.is_batch:
            return [spacing_of(batch[i]) for i in range(size)]
        if isinstance(batch, MetaTensor):
            return [spacing_of(batch)] * size
    return [spacing_of()] * size


class RegionDice(IgniteMetricHandler):
    """Mean Dice over the cases, for ``key_val_metric`` or ``additional_metrics``.

    Every case's scores, (cases, regions), are left in ``engine.state.metric_details``.

    Args:
        region: one of :data:`REGIONS`, or ``None`` for the mean over the three.
        output_transform: takes ``engine.state.output``, gives the binary predictions and labels;
            by default its ``"pred"`` and ``"label"``.
        save_details: whether to fill ``engine.state.metric_details``.
    """

    def __init__(
        self,
        region: str | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=RegionScores(lambda pred, truth, _: dice(pred, truth), region),
            output_transform=output_transform or from_engine(["pred", "label"]),
            save_details=save_details,
        )


class RegionHD95(IgniteMetricHandler):
    """Mean HD95 in mm over the cases, for ``additional_metrics``.

    The voxel size is that of the label, else of the prediction, else 1 mm. Every case's scores,
    (cases, regions), are left in ``engine.state.metric_details``.

    Args:
        region: one of :data:`REGIONS`, or ``None`` for the mean over the three.
        output_transform: takes ``engine.state.output``, gives the binary predictions and labels;
            by default its ``"pred"`` and ``"label"``.
        save_details: whether to fill ``engine.state.metric_details``.
    """

    def __init__(
        self,
        region: str | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=RegionScores(hd95, region),
            output_transform=output_transform or from_engine(["pred", "label"]),
            save_details=save_details,
        )
