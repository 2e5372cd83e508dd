"""Dice and HD95 per case and tumour region by the BraTS conventions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance
from torch import Tensor

from mod_components.data.layouts import REGIONS

"""The order of the channels of predictions and labels."""

HD95_MISSED = 373.13
"""HD95 in mm where one of the two masks is empty: about the diagonal of a BraTS volume."""


def dice(pred: Tensor, truth: Tensor) -> Tensor:
    """Dice of binary masks, channel by channel.

    Two empty masks agree (1); an empty and a non-empty one do not (0).

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.

    Returns:
        (C,), float32, on the device of ``pred``.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, or a mask is not binary.
    """
    pred, truth = _masks(pred, truth)
    overlap = _counts(pred & truth)
    total = _counts(pred) + _counts(truth)
    return torch.where(total > 0, 2.0 * overlap / total.clamp(min=1), 1.0).float()


def _counts(masks: Tensor) -> Tensor:
    """True voxels of each channel of (C, D, H, W), as (C,)."""
    # Whole tensors are counted some 20 times faster than along dimensions.
    return torch.stack([mask.count_nonzero() for mask in masks])


def hd95(pred: Tensor, truth: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """95th percentile Hausdorff distance of binary masks in mm, channel by channel.

    The larger one of the two directed percentiles between the surfaces, as MONAI computes it.
    Two empty masks are 0 mm apart; an empty and a non-empty one :data:`HD95_MISSED`.

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.
        spacing: size of a voxel in mm along D, H and W.

    Returns:
        (C,), float32, never nan, on the device of ``pred``.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, a mask is not binary, or
            ``spacing`` is not three positive numbers.
    """
    spacing = [float(size) for size in spacing]
    if len(spacing) != 3 or not all(size > 0 for size in spacing):
        raise ValueError(f"spacing must be three positive numbers of mm, got {spacing}.")
    device = pred.device
    # Surfaces are compared by a tree on the CPU: MONAI's way without a GPU extension.
    pred, truth = _masks(pred.cpu(), truth.cpu())
    return torch.stack([_hd95_of_one(p, t, spacing) for p, t in zip(pred, truth, strict=True)]).to(
        device
    )


def _hd95_of_one(pred: Tensor, truth: Tensor, spacing: list[float]) -> Tensor:
    """HD95 of one pair of bool masks (D, H, W), as a 0-d tensor."""
    if not pred.any() or not truth.any():
        return torch.tensor(HD95_MISSED if pred.any() or truth.any() else 0.0)
    box = _bounding_box(pred | truth)
    pair = torch.stack([pred[box], truth[box]])[:, None, None]  # (2, 1, 1, d, h, w)
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 call their own deprecated argument.
        warnings.filterwarnings("ignore", category=FutureWarning)
        distance = compute_hausdorff_distance(
            pair[0], pair[1], include_background=True, percentile=95, spacing=spacing
        )
    return distance[0, 0]


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Slices that hold all of a non-empty mask (D, H, W) and one voxel around it."""
    box = []
    for axis, size in enumerate(mask.shape):
        others = [other for other in range(mask.ndim) if other != axis]
        occupied = mask.any(dim=others[1]).any(dim=others[0]).nonzero()
        first, last = int(occupied[0]), int(occupied[-1])
        box.append(slice(max(first - 1, 0), min(last + 2, size)))
    return tuple(box)


def spacing_of(*images: Any) -> tuple[float, float, float]:
    """Voxel size in mm of the first image that knows its own (a ``MetaTensor``), else 1 mm.

    Args:
        images: channel-first volumes (C, D, H, W), of any kind.
    """
    for image in images:
        if isinstance(image, MetaTensor):
            d, h, w = (float(size) for size in image.pixdim)
            return d, h, w
    return 1.0, 1.0, 1.0


def _masks(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both as plain bool tensors (C, D, H, W)."""
    if pred.shape != truth.shape or pred.ndim != 4:
        raise ValueError(
            "pred and truth must both be (C, D, H, W), "
            f"got {tuple(pred.shape)} and {tuple(truth.shape)}."
        )
    return _as_mask(pred, "pred"), _as_mask(truth, "truth")


def _as_mask(tensor: Tensor, name: str) -> Tensor:
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    plain = plain.detach()
    if plain.dtype is torch.bool:
        return plain
    mask = plain == 1
    # Logits or label maps would give a plausible, wrong number.
    if not bool((mask | (plain == 0)).all()):
        raise ValueError(f"{name} must hold 0 and 1 only; is a post-processing step missing?")
    return mask


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
