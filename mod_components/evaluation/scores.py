"""All scores of a case, and what each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mod_components.data.records import REGIONS
from mod_components.metrics import (
    binary_masks,
    crop_to_masks,
    dice,
    lesion_scores,
    precision,
    sensitivity,
    surface_scores,
    volume,
    volume_error,
)
from mod_components.metrics.lesions import DILATIONS

__all__ = ["METRICS", "Metric", "score_case"]


@dataclass(frozen=True)
class Metric:
    """What a score is.

    Attributes:
        key: name in tables; a case's column is ``<key>_<region in small letters>``.
        title: name to read.
        unit: unit of the values, "" where they have none.
    """

    key: str
    title: str
    unit: str


METRICS = (
    Metric("dice", "Dice", ""),
    Metric("hd95", "HD95", "mm"),
    Metric("nsd", "Surface Dice at 1 mm", ""),
    Metric("sensitivity", "Sensitivity", ""),
    Metric("precision", "Precision", ""),
    Metric("volume_truth", "True volume", "mL"),
    Metric("volume_pred", "Predicted volume", "mL"),
    Metric("volume_error", "Volume error", "mL"),
    Metric("lesion_dice", "Lesion-wise Dice", ""),
    Metric("lesion_hd95", "Lesion-wise HD95", "mm"),
    Metric("lesions_truth", "True lesions", ""),
    Metric("lesions_found", "Lesions found", ""),
    Metric("lesions_false", "False lesions", ""),
)
"""All scores, in the order of the columns."""


def score_case(
    pred: Tensor, truth: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, float]:
    """Every score of :data:`METRICS` for the three regions of a case.

    Args:
        pred: predicted masks of 0 and 1 (or bool) in the order TC, WT, ET, (3, D, H, W).
        truth: true masks, of the same shape.
        spacing: size of a voxel in mm along D, H and W.

    Returns:
        Values by ``<metric>_<region in small letters>``, metric by metric. Only sensitivity and
        precision can be nan, where :mod:`mod_components.metrics.overlap` says so.

    Raises:
        ValueError: if the shapes differ or are not (3, D, H, W), a mask is not binary, or
            ``spacing`` is not three positive numbers.
    """
    if pred.ndim != 4 or pred.shape[0] != len(REGIONS):
        raise ValueError(f"masks must be ({len(REGIONS)}, D, H, W), got {tuple(pred.shape)}.")
    # Nothing outside the masks counts; lesions need as much around them as they are dilated.
    pred, truth = crop_to_masks(*binary_masks(pred, truth), margin=DILATIONS)  # (3, d, h, w)
    distances, surface_dices = surface_scores(pred, truth, spacing)
    lesions = lesion_scores(pred, truth, spacing)
    values: dict[str, Sequence[float]] = {
        "dice": dice(pred, truth).tolist(),
        "hd95": distances.tolist(),
        "nsd": surface_dices.tolist(),
        "sensitivity": sensitivity(pred, truth).tolist(),
        "precision": precision(pred, truth).tolist(),
        "volume_truth": volume(truth, spacing).tolist(),
        "volume_pred": volume(pred, spacing).tolist(),
        "volume_error": volume_error(pred, truth, spacing).tolist(),
        "lesion_dice": [lesion.dice for lesion in lesions],
        "lesion_hd95": [lesion.hd95 for lesion in lesions],
        "lesions_truth": [float(lesion.lesions) for lesion in lesions],
        "lesions_found": [float(lesion.found) for lesion in lesions],
        "lesions_false": [float(lesion.false) for lesion in lesions],
    }
    return {
        f"{metric.key}_{region.lower()}": value
        for metric in METRICS
        for region, value in zip(REGIONS, values[metric.key], strict=True)
    }
