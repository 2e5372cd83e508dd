"""Find and name every bad case before training starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from tqdm import tqdm

from mod_components.data.layouts import CHANNELS, CaseRecord, DataError, Layout

logger = logging.getLogger(__name__)

_PROGRESS_FROM = 20
_LINES_SHOWN = 20
_MAX_WORKERS = 8
# Real headers differ by rounding; a voxel's tenth is far below what harms a segmentation.
_AFFINE_TOLERANCE_MM = 0.1
_COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one case.

    Attributes:
        case: the case's id.
        file: path of the file concerned, or the case's folder.
        severity: "error" (the case can't be used) or "warning".
        message: what is wrong.
        mend: what to do about it.
    """

    case: str
    file: str
    severity: str
    message: str
    mend: str

    def __str__(self) -> str:
        return f"{self.case}: {self.file}: {self.message} ({self.mend})"


def check_cases(
    records: Sequence[CaseRecord], layout: Layout, *, full: bool = False
) -> list[Problem]:
    """Check headers and label codes of all cases.

    Args:
        records: from ``scan``.
        layout: from ``find_layout``; its codes are the ones allowed in label maps.
        full: read the voxels of all images too (finds broken and non-finite ones; slow).

    Returns:
        All problems, in the order of ``records``. Never raises for what a file holds.
    """
    checks = CHECKS + FULL_CHECKS if full else CHECKS

    def check(record: CaseRecord) -> list[Problem]:
        case = _Case(record, layout)
        return [problem for function in checks for problem in function(case)]

    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        found = tqdm(
            pool.map(check, records),
            total=len(records),
            desc="checking cases",
            disable=len(records) <= _PROGRESS_FROM,
        )
        return [problem for problems in found for problem in problems]


def refuse_bad_cases(
    records: Sequence[CaseRecord], layout: Layout, *, full: bool = False
) -> list[Problem]:
    """Check all cases, log the warnings and refuse the whole set if there is an error.

    Args:
        records: from ``scan``.
        layout: from ``find_layout``.
        full: see ``check_cases``.

    Returns:
        The warnings.

    Raises:
        DataError: naming all errors at once, or the first ones and their number.
    """
    problems = check_cases(records, layout, full=full)
    warnings = [problem for problem in problems if problem.severity != "error"]
    errors = [problem for problem in problems if problem.severity == "error"]
    for problem in warnings[:_LINES_SHOWN]:
        logger.warning("%s", problem)
    if len(warnings) > _LINES_SHOWN:
        logger.warning("… and %d more warnings", len(warnings) - _LINES_SHOWN)
    if errors:
        lines = [f"  {problem}" for problem in errors[:_LINES_SHOWN]]
        if len(errors) > _LINES_SHOWN:
            lines.append(f"  … and {len(errors) - _LINES_SHOWN} more")
        bad = len({problem.case for problem in errors})
        head = f"{bad} of {len(records)} cases can't be used ({len(errors)} errors):"
        raise DataError("\n".join([head, *lines]))
    return warnings


class _Volume:
    """One file's header, and what went wrong when it was read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.affine = np.eye(4)
        self.error = ""
        try:
            if os.path.getsize(path) == 0:
                self.error = "the file is empty (0 bytes)"
                return
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image):
                self.error = f"not a NIfTI file but {type(image).__name__}"
                return
            self.shape, self.affine = tuple(image.shape), np.asarray(image.affine)
        except Exception as error:  # nibabel, gzip and zlib raise whatever garbage leads them to
            self.error = f"not a readable NIfTI file ({_brief(error)})"

    def voxels(self) -> np.ndarray:
        """Values with the header's scaling applied, in the file's type where there is none."""
        return np.asanyarray(nib.load(self.path).dataobj)  # type: ignore[attr-defined]


class _Case:
    """What the checks look at: one record with its headers, read once."""

    def __init__(self, record: CaseRecord, layout: Layout) -> None:
        self.record = record
        self.layout = layout

    @cached_property
    def images(self) -> list[_Volume]:
        return [_Volume(path) for path in self.record.images]

    @cached_property
    def label(self) -> _Volume | None:
        return _Volume(self.record.label) if self.record.label else None

    @property
    def volumes(self) -> list[_Volume]:
        return [*self.images, *([self.label] if self.label else [])]

    @property
    def readable(self) -> list[_Volume]:
        return [volume for volume in self.volumes if not volume.error]

    def error(self, file: str, message: str, mend: str) -> Problem:
        return Problem(self.record.case, file, "error", message, mend)

    def warning(self, file: str, message: str, mend: str) -> Problem:
        return Problem(self.record.case, file, "warning", message, mend)


def _missing_modality(case: _Case) -> Iterator[Problem]:
    if case.record.missing:
        names = ", ".join(case.record.missing)
        mend = "add the file, or remove the case"
        yield case.error(case.record.folder, f"no file for {names}", mend)


def _unreadable(case: _Case) -> Iterator[Problem]:
    for volume in case.volumes:
        if volume.error:
            yield case.error(volume.path, volume.error, _COPY_AGAIN)


def _dimensions(case: _Case) -> Iterator[Problem]:
    """A 4D file has a channel per modality, everything else is 3D."""
    for volume in case.readable:
        if case.record.stacked and volume is not case.label:
            if len(volume.shape) != 4 or volume.shape[3] != len(CHANNELS):
                message = f"expected 4D with {len(CHANNELS)} channels, found shape {volume.shape}"
                yield case.error(volume.path, message, f"stack {', '.join(CHANNELS)} in one file")
        elif len(volume.shape) != 3:
            message = f"expected a 3D volume, found shape {volume.shape}"
            yield case.error(volume.path, message, "store one 3D volume a file")


def _grids(case: _Case) -> Iterator[Problem]:
    """All files of a case lie on the grid of its first one."""
    if not case.readable:
        return
    first, *others = case.readable
    for volume in others:
        name = os.path.basename(first.path)
        if volume.shape[:3] != first.shape[:3]:
            message = f"shape {volume.shape[:3]}, but {name} has {first.shape[:3]}"
            yield case.error(volume.path, message, "resample the case's files to one grid")
            continue
        gap = float(np.abs(volume.affine - first.affine).max())
        message = f"affine differs from that of {name} by up to {gap:.3g} mm"
        if volume is not case.label and not np.allclose(volume.affine, first.affine):
            # the tolerance of MONAI's reader, which stacks the channels
            mend = "register the files, or write them all with the affine of the first"
            yield case.error(volume.path, message, mend)
        elif nib.aff2axcodes(volume.affine) != nib.aff2axcodes(first.affine):
            yield case.error(volume.path, message, "store it in the orientation of the scan")
        elif gap > _AFFINE_TOLERANCE_MM:
            mend = "see that the files are registered to each other"
            yield case.warning(volume.path, message, mend)


def _axis_order(case: _Case) -> Iterator[Problem]:
    """MONAI's writer can't write a label map whose first axis is not left-right, and so on."""
    if case.readable:
        codes = "".join(str(code) for code in nib.aff2axcodes(case.readable[0].affine))
        pairs = zip(codes, ("LR", "PA", "SI"), strict=True)
        if not all(letter in pair for letter, pair in pairs):
            message = f"its axes are {codes}, not left-right, front-back, up-down"
            yield case.error(case.readable[0].path, message, "store the case's files as LPS or RAS")


def _label_codes(case: _Case) -> Iterator[Problem]:
    if case.label is None or case.label.error:
        return
    path, allowed = case.label.path, sorted(case.layout.label_codes)
    try:
        voxels = case.label.voxels()
        known = voxels == 0
        for code in allowed:
            known |= voxels == code
        strange = np.unique(voxels[~known])
        finite = strange[np.isfinite(strange)]
    except Exception as error:
        yield case.error(path, f"the label map can't be read ({_brief(error)})", _COPY_AGAIN)
        return
    if len(finite) < len(strange):
        yield case.error(path, "the label map has non-finite values", "write it again")
    if len(finite):
        found = ", ".join(f"{value:g}" for value in finite[:5]) + (", …" if len(finite) > 5 else "")
        codes = ", ".join(f"{name} {code}" for name, code in case.layout.codes.items())
        message = f"label code {found} is not one of 0 (background), {codes}"
        yield case.error(path, message, _mend_codes(case.layout, finite))


def _mend_codes(layout: Layout, strange: np.ndarray) -> str:
    if layout.name == "brats" and strange.tolist() == [3]:
        return (
            "3 is enhancing tumour from BraTS 2023 on: give the files their BraTS 2023 names, "
            "<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz, or write 4 for 3"
        )
    if layout.name == "brats2023" and strange.tolist() == [4]:
        return (
            "4 is enhancing tumour up to BraTS 2022: give the files their older names, "
            "<case>_{t1,t1ce,t2,flair,seg}.nii.gz, or write 3 for 4"
        )
    if any(value != round(value) for value in strange.tolist()):
        return "resample label maps with nearest neighbours, never with interpolation"
    return "correct the label map to these codes, or remove the case"


def _image_voxels(case: _Case) -> Iterator[Problem]:
    for volume in case.images:
        if volume.error:
            continue
        try:
            finite = bool(np.isfinite(volume.voxels()).all())
        except Exception as error:
            yield case.error(volume.path, f"voxels can't be read ({_brief(error)})", _COPY_AGAIN)
            continue
        if not finite:
            yield case.error(volume.path, "non-finite voxels", "convert the original scan again")


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


Check = Callable[[_Case], Iterator[Problem]]

# A check yields the problems of one case; they run in this order.
CHECKS: tuple[Check, ...] = (
    _missing_modality,
    _unreadable,
    _dimensions,
    _grids,
    _axis_order,
    _label_codes,
)
FULL_CHECKS: tuple[Check, ...] = (_image_voxels,)
