"""Overlap, surface and lesion-wise scores of binary masks by the BraTS conventions."""

from __future__ import annotations

from mod_components.data.records import REGIONS
from mod_components.metrics.lesions import (
    LESION_HD95_MISSED,
    LESION_MINIMUM,
    LesionScores,
    lesion_scores,
)
from mod_components.metrics.masks import SAME_SIZE, binary_masks, crop_to_masks, spacing_of
from mod_components.metrics.overlap import dice, precision, sensitivity, volume, volume_error
from mod_components.metrics.regions import RegionDice, RegionHD95, RegionScores
from mod_components.metrics.surface import HD95_MISSED, NSD_TOLERANCE, hd95, nsd, surface_scores

__all__ = [
    "HD95_MISSED",
    "LESION_HD95_MISSED",
    "LESION_MINIMUM",
    "NSD_TOLERANCE",
    "REGIONS",
    "SAME_SIZE",
    "LesionScores",
    "RegionDice",
    "RegionHD95",
    "RegionScores",
    "binary_masks",
    "crop_to_masks",
    "dice",
    "hd95",
    "lesion_scores",
    "nsd",
    "precision",
    "sensitivity",
    "spacing_of",
    "surface_scores",
    "volume",
    "volume_error",
]
