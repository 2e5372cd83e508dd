"""What a data set is made of: its layout, its cases, and the error of a folder that is none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mod_components.errors import DataError

__all__ = [
    "BRATS",
    "BRATS2023",
    "CHANNELS",
    "CODES",
    "MODALITY_NAMES",
    "MSD",
    "REGIONS",
    "SUFFIXES",
    "CaseRecord",
    "FolderError",
    "Layout",
    "doubles_of",
    "nothing_found",
    "refuse_unreadable",
]

CHANNELS = ("T1ce", "T1", "T2", "FLAIR")
REGIONS = ("TC", "WT", "ET")

BRATS, BRATS2023, MSD = "brats", "brats2023", "msd"
CODES = {
    BRATS: {"necrosis": 1, "oedema": 2, "enhancing": 4},
    BRATS2023: {"necrosis": 1, "oedema": 2, "enhancing": 3},
    MSD: {"necrosis": 2, "oedema": 1, "enhancing": 3},
}
SUFFIXES = {
    BRATS: dict(zip(("t1ce", "t1", "t2", "flair"), CHANNELS, strict=True)),
    BRATS2023: dict(zip(("t1c", "t1n", "t2w", "t2f"), CHANNELS, strict=True)),
}
MODALITY_NAMES = {
    "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce",
    "t1": "T1", "t1w": "T1", "t1n": "T1",
    "t2": "T2", "t2w": "T2",
    "flair": "FLAIR", "t2f": "FLAIR",
}  # fmt: skip

_UNDERSTOOD = (
    "Layouts understood: BraTS 2018-2022 (<case>_{t1,t1ce,t2,flair,seg}.nii.gz), BraTS 2023 and "
    "later (<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz), each case in a folder anywhere below, and "
    "Medical Segmentation Decathlon Task01 (dataset.json, imagesTr/, labelsTr/)"
)


class FolderError(DataError):
    """A folder that can't be read as a data set.

    Attributes:
        kind: short name of what is wrong, as reports of the checks have it.
        message: what is wrong, and where.
        mend: what to do about it.
    """

    def __init__(self, kind: str, message: str, mend: str) -> None:
        super().__init__(kind, message, mend)
        self.kind, self.message, self.mend = kind, message, mend

    def __str__(self) -> str:
        return f"{self.message}. {self.mend}."


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out on disk.

    Attributes:
        name: "brats" (2018-2022), "brats2023" (and later) or "msd" (Decathlon Task01).
        channel_order: indices that bring the loaded channels into the order of ``CHANNELS``.
        codes: label codes of "necrosis" (with non-enhancing core), "oedema" and "enhancing".
        aliases: codes that some label maps have in place of one of ``codes``.
    """

    name: str
    channel_order: tuple[int, ...] = (0, 1, 2, 3)
    codes: Mapping[str, int] = field(default_factory=lambda: dict(CODES[BRATS]))
    aliases: Mapping[int, int] = field(default_factory=dict)

    @property
    def region_codes(self) -> dict[str, tuple[int, ...]]:
        """Label codes that make up each of ``REGIONS``."""
        core, oedema, enhancing = self.label_codes
        return {"TC": (core, enhancing), "WT": (core, oedema, enhancing), "ET": (enhancing,)}

    def as_listed(self) -> dict[str, Any]:
        """The layout as a datalist notes it."""
        return {
            "layout": self.name,
            "channel_order": list(self.channel_order),
            "codes": dict(self.codes),
        }

    @property
    def label_codes(self) -> list[int]:
        """Codes of core, oedema and enhancing tumour, for writing a label map."""
        return [self.codes[name] for name in ("necrosis", "oedema", "enhancing")]


@dataclass(frozen=True)
class CaseRecord:
    """The files found of one case, complete or not.

    Attributes:
        case: the case's id.
        images: absolute paths in the order of ``CHANNELS``, missing ones left out; or one 4D file.
        label: absolute path of the label map; None where there is none.
        missing: names of the modalities that were not found.
        stacked: whether the case is one 4D file.
        doubles: (path used, path passed over) of files that are there as .nii and as .nii.gz.
        misnamed: (path, right name) of files that would stand for a missing modality if they
            were named as the layout names it.
    """

    case: str
    images: tuple[str, ...]
    label: str | None = None
    missing: tuple[str, ...] = ()
    stacked: bool = False
    doubles: tuple[tuple[str, str], ...] = ()
    misnamed: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        """Folder of the case's first file."""
        return os.path.dirname((*self.images, self.label or "")[0])

    def as_case(self) -> dict[str, Any]:
        """The case as a dictionary for MONAI's data sets; "missing" only where something is."""
        image = self.images[0] if self.stacked else list(self.images)
        case: dict[str, Any] = {"case": self.case, "image": image, "label": self.label}
        if self.missing:
            case["missing"] = list(self.missing)
        return case


def refuse_unreadable(error: OSError) -> NoReturn:
    """A folder that is passed over in silence would take its cases along."""
    message = f"Folder {error.filename} can't be read ({error.strerror})"
    mend = "Make it readable (chmod u+rx), or take it out of the data set"
    raise FolderError("unreadable-folder", message, mend) from error


def doubles_of(groups: Iterable[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((paths[0], other) for paths in groups for other in paths[1:])


def nothing_found(root: Path) -> FolderError:
    inside = sorted(os.listdir(root))
    shown = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
    tasks = [sub for sub in inside if os.path.isdir(root / sub / "imagesTr")]
    hint = f"Did you mean {root / tasks[0]}? " if tasks else ""
    message = f"No case found in {root}; it holds {shown or 'nothing'}"
    return FolderError("no-case", message, f"{hint}{_UNDERSTOOD}")
