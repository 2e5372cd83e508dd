"""Thresholds of the post-processing, chosen on held-out folds of the training cases.

The post-processing that ``evaluate.json`` and ``inference.json`` apply with ``--postprocess true``
works from the outermost region to the innermost: connected components (26 neighbours) of WT, then
of TC in what is left, then of ET in what is left, are removed where they are smaller than their
region's threshold; at last ET as a whole where it is smaller than a threshold of its own (its
voxels become core: a few enhancing voxels in a tumour without enhancement cost the whole score).

ET lies inside TC and TC inside WT, so each component lies inside one of the region around it: sizes
and overlaps of a case's components tell the Dice for any thresholds, and the files are read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from mod_components.data.records import REGIONS

__all__ = ["NONE", "ORDER", "Case", "Components", "Thresholds", "choose", "components", "mean_dice"]

SIZES_MM3 = (0, 8, 16, 32, 64, 125, 250, 500, 1000, 2000, 4000)
"""Candidates for the smallest component of a region."""

TOTALS_MM3 = (0, 32, 64, 125, 250, 500, 1000)
"""Candidates for the smallest enhancing tumour as a whole."""

ORDER = ("WT", "TC", "ET")
"""The regions from the outside in."""

_NEIGHBOURS = np.ones((3, 3, 3))


@dataclass(frozen=True)
class Thresholds:
    """What is too small to stay, in mm³.

    Attributes:
        min_component_mm3: smallest component of TC, WT and ET.
        min_et_mm3: smallest ET as a whole.
    """

    min_component_mm3: dict[str, float]
    min_et_mm3: float

    def as_dict(self) -> dict[str, Any]:
        """As in ``postprocessing.json``."""
        return {"min_component_mm3": self.min_component_mm3, "min_et_mm3": self.min_et_mm3}


NONE = Thresholds(dict.fromkeys(REGIONS, 0), 0)


@dataclass(frozen=True)
class Components:
    """The predicted components of one region of one case.

    Attributes:
        size: volume of each in mm³ (n,).
        overlap: volume shared with the true region in mm³ (n,).
        parent: number of the component around it in the next larger region (n,).
        truth: volume of the true region in mm³.
    """

    size: np.ndarray
    overlap: np.ndarray
    parent: np.ndarray
    truth: float


Case = dict[str, Components]


def choose(cases: Sequence[Case]) -> Thresholds:
    """The thresholds of the largest mean Dice, from the outermost region to the innermost.

    Of equal ones the smallest is taken, so that nothing is removed without a gain.

    Args:
        cases: components by region, from :func:`components`.
    """
    chosen: dict[str, float] = dict.fromkeys(REGIONS, 0)
    for region in ("WT", "TC"):
        scores = [
            mean_dice(cases, Thresholds({**chosen, region: size}, 0))[region] for size in SIZES_MM3
        ]
        chosen[region] = SIZES_MM3[int(np.argmax(np.round(scores, 9)))]
    grid = [(size, total) for size in SIZES_MM3 for total in TOTALS_MM3]
    scores = [
        mean_dice(cases, Thresholds({**chosen, "ET": size}, total))["ET"] for size, total in grid
    ]
    chosen["ET"], total = grid[int(np.argmax(np.round(scores, 9)))]
    return Thresholds(chosen, total)


def mean_dice(cases: Sequence[Case], thresholds: Thresholds) -> dict[str, float]:
    """Mean Dice of each region over cases after post-processing; two empty masks count 1."""
    scores = np.array([list(_dice(case, thresholds).values()) for case in cases])
    return dict(zip(ORDER, scores.mean(axis=0).tolist(), strict=True))


def components(pred: np.ndarray, truth: np.ndarray, voxel_mm3: float) -> Case:
    """Sizes and overlaps of a case's predicted components.

    Args:
        pred: predicted regions TC, WT, ET, nested, (3, D, H, W), bool.
        truth: true regions, likewise.
        voxel_mm3: volume of a voxel.
    """
    found: Case = {}
    around = np.zeros(pred.shape[1:], int)
    for region in ORDER:
        channel = REGIONS.index(region)
        parts, number = ndimage.label(pred[channel], _NEIGHBOURS)
        flat = parts.ravel()
        first = np.zeros(number + 1, int)
        first[flat[::-1]] = np.arange(flat.size)[::-1]  # a voxel of each component
        found[region] = Components(
            size=np.bincount(flat, minlength=number + 1)[1:] * voxel_mm3,
            overlap=np.bincount(flat[truth[channel].ravel()], minlength=number + 1)[1:] * voxel_mm3,
            parent=around.ravel()[first[1:]] - 1,
            truth=float(truth[channel].sum() * voxel_mm3),
        )
        around = parts
    return found


def _dice(case: Case, thresholds: Thresholds) -> dict[str, float]:
    scores: dict[str, float] = {}
    kept = np.ones(1, bool)
    for region in ORDER:
        part = case[region]
        inside = kept[part.parent] if region != "WT" else np.ones(len(part.size), bool)
        # a volume that is a whole number of voxels must not fall to the rounding of mm³
        kept = inside & (part.size >= thresholds.min_component_mm3[region] - 1e-6)
        volume = float(part.size[kept].sum())
        overlap = float(part.overlap[kept].sum())
        if region == "ET" and volume < thresholds.min_et_mm3 - 1e-6:
            volume = overlap = 0.0
        total = volume + part.truth
        scores[region] = 2 * overlap / total if total else 1.0
    return scores
