"""Lesion-wise Dice and HD95 after BraTS 2023.

The definition is that of Saluja et al. for glioma (GLI): the code of
https://github.com/rachitsaluja/BraTS-2023-Metrics (commit 43c9052), and the challenge's text at
https://www.synapse.org/Synapse:syn51156910/discussion/threadId=10357. As there, region by region:

* The truth is dilated three times by a voxel's 18 neighbours (faces and edges, no corners). True
  voxels in one 26-connected component of the dilated truth are one lesion, however many pieces.
* The prediction is not dilated; its 26-connected components are its parts.
* The parts that touch a lesion's dilated component, each as a whole, are what was predicted for
  it. A part that touches several lesions is counted in full for each of them.
* A lesion's Dice and HD95 are those of its own voxels, not dilated, and all of its parts. Without
  any part it is missed: Dice 0, HD95 374 mm.
* A part that touches no lesion is a false positive: Dice 0, HD95 374 mm, whatever its size. The
  threshold on the volume is for true lesions only.
* Lesions of 50 mm³ or less are left out, found or not. What touches them still isn't false.
* The score of a case is the mean over the lesions that are left and the false positives. With
  neither of them, Dice is 1 and HD95 is 0: both masks empty, or only lesions too small to count.

The code and the text differ in two places, and the code is followed: it compares the volume in
mm³ where the text has voxels, and dilates by voxels where the text has mm. On the challenge's
1 mm grid they agree; other grids are scored with dilations of another width in mm.

One thing differs here on purpose: HD95 is :func:`mod_components.metrics.hd95`, with surface voxels
counted alike. The challenge weighs elements between the voxels by their area (DeepMind's
surface-distance), which moves the HD95 of found lesions: usually by less than a voxel, on some
real lesions by more than one, on small or scattered parts and anisotropic voxels by several. It is
not comparable with the leaderboard to the decimal. Dice and the counts are the same. The penalty
is the challenge's 374 mm, where the HD95 of whole regions has 373.13 mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mod_components.metrics.masks import SAME_SIZE, binary_masks, bounding_box, voxel_size
from mod_components.metrics.surface import hd95_of_distances, surface_distances

__all__ = ["DILATIONS", "LESION_HD95_MISSED", "LESION_MINIMUM", "LesionScores", "lesion_scores"]

LESION_HD95_MISSED = 374.0
"""HD95 in mm of a missed lesion and of a false positive, as published."""

LESION_MINIMUM = 50.0
"""Volume in mm³ up to which a true lesion is left out."""

DILATIONS = 3
"""Times that the truth is dilated, to join what is close; a voxel's width each."""

_DILATION = ndimage.generate_binary_structure(3, 2)  # faces and edges
_CONNECTIVITY = ndimage.generate_binary_structure(3, 3)  # and corners


class LesionScores(NamedTuple):
    """Lesion-wise scores of one region of a case.

    Attributes:
        dice: mean Dice over the lesions and the false positives.
        hd95: mean HD95 in mm over the same.
        lesions: true lesions above the threshold.
        found: those of them that a part of the prediction touches.
        false: parts of the prediction that touch no lesion, of any size.
    """

    dice: float
    hd95: float
    lesions: int
    found: int
    false: int

    @property
    def missed(self) -> int:
        """True lesions above the threshold that nothing touches."""
        return self.lesions - self.found


def lesion_scores(
    pred: Tensor, truth: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> list[LesionScores]:
    """Lesion-wise Dice and HD95, channel by channel, by the conventions of this module.

    Args:
        pred: predicted masks of 0 and 1 (or bool), (C, D, H, W).
        truth: true masks, of the same shape.
        spacing: size of a voxel in mm along D, H and W.

    Returns:
        Scores of each of the C channels.

    Raises:
        ValueError: if the shapes differ or are not four-dimensional, a mask is not binary, or
            ``spacing`` is not three positive numbers.
    """
    spacing = voxel_size(spacing)
    masks = [mask.cpu().numpy() for mask in binary_masks(pred, truth)]
    return [_scores_of_one(p, t, spacing) for p, t in zip(*masks, strict=True)]


def _scores_of_one(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> LesionScores:
    """Lesion-wise scores of one pair of masks (D, H, W)."""
    # The margin holds all dilations, so that lesions join here as they do in the whole volume.
    box = bounding_box(pred | truth, margin=DILATIONS)
    pred, truth = pred[box], truth[box]
    near, n_near = ndimage.label(_dilate(truth), _CONNECTIVITY)  # a number for each lesion
    parts, n_parts = ndimage.label(pred, _CONNECTIVITY)
    touching = _touching(near, parts)
    dices, distances = [], []
    found = 0
    voxel = math.prod(spacing)
    for number, around in enumerate(ndimage.find_objects(near) if n_near else [], start=1):
        lesion = truth[around] & (near[around] == number)
        if np.count_nonzero(lesion) * voxel <= LESION_MINIMUM * (1 + SAME_SIZE):
            continue
        mine = touching.get(number, [])
        found += bool(mine)
        score = _lesion(truth & (near == number), np.isin(parts, mine), spacing) if mine else None
        dices.append(score[0] if score else 0.0)
        distances.append(score[1] if score else LESION_HD95_MISSED)
    false = n_parts - len({part for mine in touching.values() for part in mine})
    total = len(dices) + false
    if not total:
        return LesionScores(1.0, 0.0, 0, 0, 0)
    return LesionScores(
        dice=sum(dices) / total,
        hd95=(sum(distances) + false * LESION_HD95_MISSED) / total,
        lesions=len(dices),
        found=found,
        false=false,
    )


def _dilate(truth: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ndimage.binary_dilation(truth, _DILATION, iterations=DILATIONS)


def _touching(near: NDArray[np.int32], parts: NDArray[np.int32]) -> dict[int, list[int]]:
    """Numbers of the parts that share a voxel with each dilated lesion, by its number."""
    both = (near > 0) & (parts > 0)
    pairs = np.unique(np.stack([near[both], parts[both]], axis=1), axis=0)  # (pairs, 2)
    touching: dict[int, list[int]] = {}
    for lesion, part in pairs.tolist():
        touching.setdefault(lesion, []).append(part)
    return touching


def _lesion(
    lesion: NDArray[np.bool_], found: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> tuple[float, float]:
    """Dice and HD95 of a lesion and what was predicted for it, both (d, h, w) and not empty."""
    overlap = 2 * np.count_nonzero(lesion & found)
    dice = float(overlap / (np.count_nonzero(lesion) + np.count_nonzero(found)))
    return dice, hd95_of_distances(surface_distances(lesion, found, spacing))
