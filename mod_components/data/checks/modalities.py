"""Whether two modalities of a case changed places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mod_components.data.checks.case import Case
from mod_components.data.checks.problem import Problem
from mod_components.data.records import CHANNELS

_MARGIN = 0.5
_MIN_BRAIN_VOXELS = 1000
_MIN_ENHANCING_VOXELS = 50
# A statistic of half a million voxels is as good as one of ten million.
_VOXELS_USED = 500_000
_MEND = "compare the two images, and rename the files if they changed places"


def modality_order(case: Case) -> Iterator[Problem]:
    """swapped-modalities (warning): T1ce with T1, or T2 with FLAIR.

    Grey values are z-scores over the voxels where no modality is 0; both rules read the other way
    round for a case whose files were exchanged. A case where they speak for nothing gets none.

    T1ce and T1: contrast agent makes vessels and the enhancing tumour bright. Suspect where T1's
    99.5th percentile is higher, and in the enhancing tumour T1's mean is higher by 0.5; without
    enhancing tumour (50 voxels), where the percentile is higher by 0.5.

    T2 and FLAIR: fluid is brightest in T2 and dark in FLAIR, whereas what is brightest in FLAIR is
    bright in T2 too. Suspect where FLAIR in T2's brightest 2% exceeds T2 in FLAIR's brightest 2%
    by 0.5.
    """
    channels = {scan.channel: scan for scan in case.sound_scans}
    if set(channels) != set(CHANNELS):
        return
    scans = [channels[name] for name in CHANNELS]
    brain = np.flatnonzero(
        np.logical_and.reduce([scan.foreground.ravel(order="F") for scan in scans])
    )
    if len(brain) < _MIN_BRAIN_VOXELS:
        return
    brain = brain[:: len(brain) // _VOXELS_USED + 1]
    t1ce, t1, t2, flair = (_z_scores(scan.voxels.ravel(order="F")[brain]) for scan in scans)
    enhancing = _enhancing(case, brain, scans[0].voxels)
    if _gadolinium_in_t1(t1ce, t1, enhancing):
        message = "T1 shows more contrast agent than T1ce does: they look swapped"
        yield case.warning("swapped-modalities", channels["T1ce"].path, message, _MEND)
    if _overlap(t2, flair) - _overlap(flair, t2) > _MARGIN:
        message = "T2 looks like FLAIR and FLAIR like T2: they look swapped"
        yield case.warning("swapped-modalities", channels["T2"].path, message, _MEND)


def _z_scores(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    return (values - values.mean()) / max(float(values.std()), 1e-6)


def _enhancing(case: Case, brain: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Which of the brain's voxels are enhancing tumour, (n,) bool; none without a label map."""
    label = case.label_voxels
    if not isinstance(label, np.ndarray) or label.shape != like.shape:
        return np.zeros(len(brain), bool)
    return label.ravel(order="F")[brain] == case.layout.codes["enhancing"]


def _gadolinium_in_t1(t1ce: np.ndarray, t1: np.ndarray, enhancing: np.ndarray) -> bool:
    tail = float(np.percentile(t1, 99.5) - np.percentile(t1ce, 99.5))
    if np.count_nonzero(enhancing) < _MIN_ENHANCING_VOXELS:
        return tail > _MARGIN
    return tail > 0 and float((t1[enhancing] - t1ce[enhancing]).mean()) > _MARGIN


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean of ``other`` where ``one`` is in its brightest 2%."""
    return float(other[one >= np.percentile(one, 98)].mean())
