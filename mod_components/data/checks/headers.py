"""The cheap checks, run before every training: headers, and the codes of label maps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from mod_components.data.checks.case import Case, Check
from mod_components.data.checks.problem import Problem
from mod_components.data.checks.volume import COPY_AGAIN, Volume, VolumeError
from mod_components.data.records import CHANNELS

# Real headers differ by rounding; a voxel's tenth is far below what harms a segmentation.
_AFFINE_TOLERANCE_MM = 0.1
_PLAUSIBLE_MM = (0.2, 10.0)
_CONVERT_AGAIN = "convert the original scan again"


def bad_name(case: Case) -> Iterator[Problem]:
    """bad-name: the case's id is UTF-8, as tables and logs are; names of files may be any bytes."""
    name = case.record.case
    if name.encode("utf-8", "replace").decode() != name:
        message = f"its name is not UTF-8: {name!a}"
        yield case.error("bad-name", case.record.folder, message, "rename its files and folder")


def missing_modality(case: Case) -> Iterator[Problem]:
    """missing-modality: each of T1ce, T1, T2 and FLAIR has a file."""
    record = case.record
    if not record.missing:
        return
    message, mend = f"no file for {', '.join(record.missing)}", "add the file, or remove the case"
    if not record.images:
        mend = (
            "a label map alone is probably a prediction: keep those outside of the data set; if it "
            "is the case's own, put it beside the case's images"
        )
    elif record.misnamed:
        pairs = [f"{os.path.basename(path)} to {right}" for path, right in record.misnamed]
        mend = f"if these are the files, rename {', '.join(pairs)}; else {mend}"
    yield case.error("missing-modality", record.folder, message, mend)


def doubles(case: Case) -> Iterator[Problem]:
    """file-twice (warning): a file is there as .nii and as .nii.gz."""
    for used, other in case.record.doubles:
        message = f"{os.path.basename(used)} is there too, and is the one that is used"
        yield case.warning("file-twice", other, message, "remove one of the two")


def unreadable(case: Case) -> Iterator[Problem]:
    """Every file is there, is NIfTI, and can hold what its header promises (see ``Volume``).

    dangling-link, not-a-file, empty-file, no-permission, disappeared, wrong-extension, not-nifti,
    bad-header, bad-dimensions, bad-type, too-large (more than 512³ voxels a volume, or 1 GiB),
    truncated (the file is smaller than the header's promise, for .gz than a 1032nd of it),
    bad-affine.
    """
    for volume in case.volumes:
        if volume.error:
            yield case.error(volume.error.kind, volume.path, str(volume.error), volume.error.mend)


def dimensions(case: Case) -> Iterator[Problem]:
    """dimensions: a 4D file has a channel per modality, everything else is 3D."""
    for volume in case.readable:
        if case.record.stacked and volume is not case.label:
            if len(volume.shape) != 4 or volume.shape[3] != len(CHANNELS):
                message = f"expected 4D with {len(CHANNELS)} channels, found shape {volume.shape}"
                mend = f"stack {', '.join(CHANNELS)} in one file"
                yield case.error("dimensions", volume.path, message, mend)
        elif len(volume.shape) != 3:
            message = f"expected a 3D volume, found shape {volume.shape}"
            mend = "store one 3D volume a file"
            if len(volume.shape) > 3 and set(volume.shape[3:]) == {1}:
                mend = "remove the fourth axis (numpy.squeeze)"
            yield case.error("dimensions", volume.path, message, mend)


def affines(case: Case) -> Iterator[Problem]:
    """The affine means something, by itself.

    bad-affine: not finite, or singular (a voxel has no volume). voxel-size (warning, once a case):
    a voxel measures less than 0.2 or more than 10 mm, or the voxel size that the header states
    beside its affine differs from the affine's by more than 1%.
    """
    said: set[str] = set()
    for volume in case.readable:
        if not volume.has_grid:
            message = "its affine is not finite or has an axis without length"
            yield case.error("bad-affine", volume.path, message, _CONVERT_AGAIN)
        elif (message := _doubtful_size(volume)) and message not in said:
            said.add(message)
            yield case.warning("voxel-size", volume.path, message, _CONVERT_AGAIN)


def _doubtful_size(volume: Volume) -> str:
    low, high = _PLAUSIBLE_MM
    sizes = " × ".join(f"{size:.3g}" for size in volume.spacing)
    if volume.contradicts_itself:
        stated = ", ".join(f"{size:.3g}" for size in volume.pixdim)
        return f"its pixdim ({stated}) contradicts its affine; it is loaded with {sizes} mm"
    if not all(low <= size <= high for size in volume.spacing):
        return f"voxels of {sizes} mm are implausible for a head scan"
    return ""


def grids(case: Case) -> Iterator[Problem]:
    """All files of a case lie on one grid, that of most of them (of the first one in a tie).

    shape-mismatch: another shape. misaligned: affines of images differ by more than MONAI's
    reader allows when it stacks them on the first one, or the label map's by more than 0.1 mm
    (warning). label-orientation: the label map has another orientation than the images.
    """
    volumes = [volume for volume in case.readable if volume.has_grid]
    if not volumes:
        return
    first = max(volumes, key=lambda one: sum(_same_grid(one, other) for other in volumes))
    for volume in volumes:
        if volume.shape[:3] != first.shape[:3]:
            name = os.path.basename(first.path)
            message = f"shape {volume.shape[:3]}, but {name} has {first.shape[:3]}"
            mend = "resample the case's files to one grid"
            yield case.error("shape-mismatch", volume.path, message, mend)
        elif volume is not case.label:
            if other := _not_stackable(case, volume, first):
                mend = "register the files, or write them all with the affine of the first"
                yield case.error("misaligned", volume.path, _gap(volume, other)[1], mend)
        else:
            gap, message = _gap(volume, first)
            if volume.orientation != first.orientation:
                mend = "store it in the orientation of the scan"
                yield case.error("label-orientation", volume.path, message, mend)
            elif gap > _AFFINE_TOLERANCE_MM:
                mend = "see that the files are registered to each other"
                yield case.warning("misaligned", volume.path, message, mend)


def _not_stackable(case: Case, volume: Volume, common: Volume) -> Volume | None:
    """The image whose affine this one's is too far from, if any.

    MONAI's reader compares each image with the first by ``numpy.allclose``. Where the first is the
    odd one out, that one is named, and not all others.
    """
    if not np.allclose(volume.affine, common.affine):
        return common
    first = case.images[0]
    comparable = first.has_grid and not first.error and _same_grid(first, common)
    return first if comparable and not np.allclose(volume.affine, first.affine) else None


def _gap(volume: Volume, other: Volume) -> tuple[float, str]:
    gap = float(np.abs(volume.affine - other.affine).max())
    name = os.path.basename(other.path)
    return gap, f"affine differs from that of {name} by up to {gap:.3g} mm"


def _same_grid(one: Volume, other: Volume) -> bool:
    return one.shape[:3] == other.shape[:3] and np.allclose(one.affine, other.affine)


def axis_order(case: Case) -> Iterator[Problem]:
    """axis-order: the axes are left-right, front-back, up-down.

    MONAI's writer can't write a label map whose first axis is not left-right, and so on.
    """
    volumes = [volume for volume in case.readable if volume.has_grid]
    if volumes:
        codes = volumes[0].orientation
        pairs = zip(codes, ("LR", "PA", "SI"), strict=True)
        if not all(letter in pair for letter, pair in pairs):
            message = f"its axes are {codes}, not left-right, front-back, up-down"
            mend = "store the case's files as LPS or RAS"
            yield case.error("axis-order", volumes[0].path, message, mend)


def label_codes(case: Case) -> Iterator[Problem]:
    """The label map holds the layout's codes.

    label-codes: it has other values, a fraction, or none that is finite. empty-label (warning): it
    has background only. Its file is read whole, so that truncated or damaged is found too. A label
    without enhancing tumour is no problem: some real tumours have none.
    """
    voxels = case.label_voxels
    if case.label is None or voxels is None:
        return
    path = case.label.path
    if isinstance(voxels, VolumeError):
        yield case.error(voxels.kind, path, _of_label(voxels), voxels.mend)
        return
    counts = case.label_counts
    if counts[0] == voxels.size:
        mend = "right for a head without tumour; else write the label map again"
        yield case.warning("empty-label", path, "the label map marks no tumour at all", mend)
    if sum(counts.values()) == voxels.size:
        return
    strange = np.unique(voxels[~np.isin(voxels, list(counts))])
    finite = strange[np.isfinite(strange)]
    if len(finite) < len(strange):
        yield case.error("label-codes", path, "the label map has non-finite values", COPY_AGAIN)
    if len(finite):
        found = ", ".join(f"{value:g}" for value in finite[:5]) + (", …" if len(finite) > 5 else "")
        codes = ", ".join(f"{name} {code}" for name, code in case.layout.codes.items())
        message = f"label code {found} is not one of 0 (background), {codes}"
        yield case.error("label-codes", path, message, _mend_codes(case, finite))


def _of_label(error: VolumeError) -> str:
    return str(error).replace("voxels", "the label map", 1)


def _mend_codes(case: Case, strange: np.ndarray) -> str:
    """What to do about other codes; never what would make another tissue of a voxel."""
    layout = case.layout
    found = strange.tolist()
    # a map that holds its own layout's code of enhancing tumour means something else by the other
    own = bool(case.label_counts[layout.codes["enhancing"]])
    if layout.name == "brats" and found == [3]:
        core = "3 beside 4 is non-enhancing core of BraTS up to 2015: write 1 for 3"
        return (
            core
            if own
            else (
                "3 is enhancing tumour from BraTS 2023 on: give the files their BraTS 2023 names, "
                "<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz, or write 4 for 3; up to BraTS 2015 it is "
                "non-enhancing core: write 1 for 3"
            )
        )
    if layout.name == "brats2023" and found == [4]:
        cavity = "4 beside 3 is the resection cavity of BraTS 2024: write 0 for it"
        return (
            cavity
            if own
            else (
                "4 is enhancing tumour up to BraTS 2022: give the files their older names, "
                "<case>_{t1,t1ce,t2,flair,seg}.nii.gz, or write 3 for 4; in BraTS 2024 it is the "
                "resection cavity: write 0 for it"
            )
        )
    if case.label is not None and case.label.scaled:
        return "its header scales the stored values: store them as integers, without scl_slope"
    if any(value != round(value) for value in found):
        return "resample label maps with nearest neighbours, never with interpolation"
    return "correct the label map to these codes, or remove the case"


# A check yields the problems of one case; they run in this order.
CHECKS: tuple[Check, ...] = (
    bad_name,
    missing_modality,
    doubles,
    unreadable,
    dimensions,
    affines,
    grids,
    axis_order,
    label_codes,
)
