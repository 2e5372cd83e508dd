"""What a case is, right or wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from mod_components.data.checks.case import Case


@dataclass(frozen=True)
class CaseFacts:
    """What the headers and the label map of a case say.

    Attributes:
        case: the case's id.
        shape: (D, H, W) of its first readable file, without channels; empty without one.
        spacing_mm: voxel size along D, H and W.
        orientation: where the axes point, such as "LPS".
        labelled: whether there is a label file.
        codes: codes of the layout that the label map holds, without the background.
        missing: modalities without a file.
        digests: see ``Case.digests``; empty after the header checks alone.
    """

    case: str
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    labelled: bool = False
    codes: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict, repr=False)


def facts_of(case: Case, full: bool) -> CaseFacts:
    """The facts of a case; with ``full`` the digests of its voxels too."""
    record = case.record
    volumes = [volume for volume in case.readable if volume.has_grid]
    first = volumes[0] if volumes else None
    return CaseFacts(
        case=record.case,
        shape=first.shape[:3] if first else (),
        # a float32 affine gives 1.00000002
        spacing_mm=tuple(round(size, 4) for size in first.spacing) if first else (),
        orientation=first.orientation if first else "",
        labelled=bool(record.label),
        codes=tuple(code for code, count in case.label_counts.items() if code and count),
        missing=record.missing,
        digests=case.digests if full else {},
    )
