"""Checks that read all voxels of a case."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mod_components.data.checks.case import Case, Check, Scan
from mod_components.data.checks.modalities import modality_order
from mod_components.data.checks.problem import Problem

_EXPORT_AGAIN = "export the image from the original scan again"
# Scanners and converters stop at these: 12 bits, signed and unsigned 16 bits.
_CEILINGS = (4095.0, 32767.0, 65535.0)
_CEILING_VOXELS = 10
_SATURATED_SHARE = 0.005
_PILE = 3
_OUTSIDE_SHARE = 0.05
_CUT_SHARE = 0.1
_SLICE_SHARE = 0.1
_BACKGROUND_SHARE = 0.1


def readable_voxels(case: Case) -> Iterator[Problem]:
    """The voxels of every image can be read to the end.

    truncated: the file ends before its voxels do. damaged: the compressed data or their checksum
    are wrong. trailing-data (warning): more than 1 MiB follows the voxels that the header states,
    or anything that is not gzip follows the end of the compressed data.
    """
    for volume, error in case.failures:
        yield case.error(error.kind, volume.path, str(error), error.mend)
    failed = {volume.path for volume, _ in case.failures}
    for volume in case.readable:
        if volume.trailing and volume.path not in failed:
            yield case.warning("trailing-data", volume.path, *volume.trailing)


def values(case: Case) -> Iterator[Problem]:
    """Every image holds finite values that differ.

    non-finite: a voxel is not a number or infinite. overflow: one is beyond 1e15, so that the
    32-bit floats that networks see can't hold it, or the sum of squares that standardises the
    image. empty-image: all voxels are 0. constant-image: all voxels have one other value.
    """
    for scan in case.scans:
        if not scan.finite:
            mend = "convert the original scan again"
            yield case.error("non-finite", scan.path, _of(case, scan, "non-finite voxels"), mend)
        elif scan.overflows:
            top = max(map(abs, scan.range))
            message = _of(case, scan, f"values up to {top:.3g} overflow 32-bit floats")
            yield case.error("overflow", scan.path, message, _EXPORT_AGAIN)
        elif not scan.sound:
            value = scan.range[0]
            kind = "constant-image" if value else "empty-image"
            message = f"all voxels are {value:g}" if value else "all voxels are 0"
            yield case.error(kind, scan.path, _of(case, scan, message), _EXPORT_AGAIN)


def saturation(case: Case) -> Iterator[Problem]:
    """saturated (warning): the brightest tissue was cut off when the image was stored.

    At least 10 voxels have the largest value, and that is what 12, 15 or 16 bits can hold (4095,
    32767, 65535); or more than 0.5% of the non-zero voxels have it, and more than three times as
    many as have the next lower value. Images scaled to 255 at their 99.9th percentile have 0.1%.
    """
    for scan in case.sound_scans:
        grey, top = scan.grey, scan.range[1]
        count = int(np.count_nonzero(grey == top))
        if top in _CEILINGS and count >= _CEILING_VOXELS:
            message = f"{count} voxels have {top:g}, the largest value that could be stored"
        elif count > _SATURATED_SHARE * grey.size and top > 0:
            below = grey[grey < top]
            near = int(np.count_nonzero(below == below.max())) if below.size else 0
            if count <= _PILE * near or not below.size:
                continue
            message = f"{count / grey.size:.1%} of the non-zero voxels have the top value {top:g}"
        else:
            continue
        yield case.warning("saturated", scan.path, _of(case, scan, message), _EXPORT_AGAIN)


def background(case: Case) -> Iterator[Problem]:
    """not-skull-stripped (warning): less than 10% of an image is exactly 0.

    Intensities are standardised over non-zero voxels, and the background is told by its zeros. The
    bounding box of a skull-stripped brain alone has some 45% of zeros, a BraTS volume 80%.
    """
    bare = [s for s in case.sound_scans if s.grey.size > (1 - _BACKGROUND_SHARE) * s.voxels.size]
    if bare:
        names = ", ".join(scan.channel for scan in bare)
        message = f"{names}: hardly any background of exact zeros; is the skull still there?"
        mend = "skull-strip the scans and set the background to 0, as BraTS does"
        yield case.warning("not-skull-stripped", bare[0].path, message, mend)


def copies(case: Case) -> Iterator[Problem]:
    """copied-modality: two modalities of a case have the same voxels."""
    first: dict[str, Scan] = {}
    for scan in case.sound_scans:
        other = first.setdefault(scan.digest, scan)
        if other is not scan:
            message = f"{scan.channel} has the same voxels as {other.channel}"
            mend = "put the right file there: a modality was copied twice"
            yield case.error("copied-modality", scan.path, message, mend)


def field_of_view(case: Case) -> Iterator[Problem]:
    """cut-short (warning): a modality does not cover the brain.

    The brain is where at least two other modalities are not 0. The modality is 0 throughout a slice
    in which the brain has at least a tenth of its largest area, or in 10% of the brain. Of 45
    BraTS cases the highest is 1.5% and no slice, but for the one whose FLAIR is known to be cut.
    """
    scans = case.sound_scans
    if len(scans) < 3:
        return
    covered = np.sum([scan.foreground for scan in scans], axis=0, dtype=np.uint8)  # (D, H, W)
    for scan in scans:
        brain = (covered - scan.foreground) >= 2
        lost = brain & ~scan.foreground
        share = np.count_nonzero(lost) / max(int(np.count_nonzero(brain)), 1)
        # a slice of a tenth of the largest area is a good deal more than a 5000th of a brain
        slices = _empty_slices(brain, scan.foreground) if share > 2e-4 else 0
        if slices or share > _CUT_SHARE:
            message = f"{scan.channel} is 0 in {share:.0%} of the brain and in {slices} slices"
            mend = "its field of view is cut short: take another scan, or leave the case out"
            yield case.warning("cut-short", scan.path, message, mend)


def _empty_slices(brain: np.ndarray, foreground: np.ndarray) -> int:
    """Slices with brain and without foreground, of the axis that has most of them."""
    worst = 0
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        area = brain.sum(axis=others)
        empty = ~foreground.any(axis=others)
        worst = max(worst, int(np.count_nonzero(empty & (area >= _SLICE_SHARE * area.max()))))
    return worst


def label_place(case: Case) -> Iterator[Problem]:
    """label-outside (warning): more than 5% of the tumour lies where all images are 0."""
    voxels, scans = case.label_voxels, case.sound_scans
    if not scans or not isinstance(voxels, np.ndarray) or voxels.shape != scans[0].voxels.shape:
        return
    tumour = voxels != 0
    total = int(np.count_nonzero(tumour))
    head = np.any([scan.foreground.T[tumour.T] for scan in scans], axis=0)  # (tumour voxels,)
    outside = total - int(np.count_nonzero(head))
    if case.label and outside > _OUTSIDE_SHARE * total:
        message = f"{outside / total:.0%} of the tumour lies where all images are 0"
        mend = "register the label map to the images"
        yield case.warning("label-outside", case.label.path, message, mend)


def _of(case: Case, scan: Scan, message: str) -> str:
    """The message, with the channel's name where the file holds all of them."""
    return f"{scan.channel}: {message}" if case.record.stacked else message


FULL_CHECKS: tuple[Check, ...] = (
    readable_voxels,
    values,
    saturation,
    background,
    copies,
    field_of_view,
    modality_order,
    label_place,
)
