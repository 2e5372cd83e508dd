"""Cases that another program lists, as MONAI Label does in place of the config's own data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import MapTransform
from nibabel.filebasedimages import ImageFileError

from mod_components.data.checks import usable_cases
from mod_components.data.decathlon import decathlon_order
from mod_components.data.layouts import record_beside
from mod_components.data.records import BRATS, BRATS2023, CODES, CaseRecord, Layout
from mod_components.errors import DataError

__all__ = ["FindModalitiesd", "listed_layout", "listed_records", "usable_listed"]

logger = logging.getLogger("mod_components.data")

_TASK01_ORDER = (2, 1, 3, 0)


class FindModalitiesd(MapTransform):
    """Put the four files of a case in place of the path of one of them.

    A list of paths, and the path of a file that is not named after a modality (one 4D file), stay
    as they are.

    Args:
        keys: keys of paths.
        allow_missing_keys: whether a key may be absent.

    Raises:
        DataError: naming the modalities that a case lacks.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], (str, os.PathLike)):
                d[key] = _complete(_record(d[key])).as_case()["image"]
        return d


def listed_records(cases: Sequence[Mapping[str, Any]]) -> list[CaseRecord]:
    """The files of listed cases.

    Args:
        cases: ``{"image", "label"}``: one 4D file, or one of the four files of a case, and its
            label map.

    Raises:
        DataError: naming a case that lacks a modality or a label map.
    """
    records = []
    for case in cases:
        if not case.get("label"):
            raise DataError(f"{case.get('image')} is listed without a label map: give it one.")
        found = _complete(_record(case["image"]))
        records.append(
            CaseRecord(
                found.case, found.images, os.path.abspath(case["label"]), stacked=found.stacked
            )
        )
    return records


def listed_layout(records: Sequence[CaseRecord]) -> Layout:
    """Channel order of listed cases, and the label codes that the bundles' metadata name.

    Enhancing tumour is 4 or 3: 3D Slicer numbers the segments that it submits by their places.

    4D files have the channels T1ce, T1, T2, FLAIR, or the order that a ``dataset.json`` beside
    them or in the folder above declares, as a Decathlon task does.

    Args:
        records: from :func:`listed_records`.

    Raises:
        DataError: if the channels of the cases come in different orders.
    """
    orders: dict[tuple[int, ...], str] = {}
    for record in records:
        orders.setdefault(_channel_order(record), record.case)
    if len(orders) > 1:
        raise DataError(
            f"the channels of cases {' and '.join(orders.values())} come in different orders: "
            "train on cases of one kind."
        )
    order = next(iter(orders), (0, 1, 2, 3))
    aliases = {CODES[BRATS2023]["enhancing"]: CODES[BRATS]["enhancing"]}
    return Layout(BRATS, order, dict(CODES[BRATS]), aliases)


def usable_listed(
    training: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    skip_bad: bool,
) -> tuple[Layout, list[dict[str, Any]], list[dict[str, Any]]]:
    """Check listed cases before anything else takes time.

    Args:
        training: cases to train on, as :func:`listed_records` takes them.
        validation: cases to validate on; may be empty.
        skip_bad: leave out bad cases instead of refusing all.

    Returns:
        The layout, and the training and validation cases that can be used.

    Raises:
        DataError: if none is left to train on, or a case has an error.
    """
    if not training:
        raise DataError(
            "no labelled case is listed to train on: label one first, or lower the share of those "
            "that validate (val_split)."
        )
    records = _without_doubles(*(listed_records(cases) for cases in (training, validation)))
    layout = listed_layout([*records[0], *records[1]])
    good: set[int] = set()
    for name in (BRATS, BRATS2023):  # a label map may have either code, and never both
        part = [r for r in (*records[0], *records[1]) if _codes_of(r) == name]
        own = Layout(name, layout.channel_order, dict(CODES[name]))
        try:
            good |= {id(r) for r in (usable_cases(part, own, skip_bad=skip_bad)[0] if part else [])}
        except DataError as error:
            if not skip_bad:
                raise
            logger.warning("%s", error)  # those with the other code may do
    chosen = [[r.as_case() for r in part if id(r) in good] for part in records]
    if not chosen[0]:
        raise DataError("no listed case is left to train on: mend the cases named above.")
    return layout, chosen[0], chosen[1]


def _without_doubles(
    training: list[CaseRecord], validation: list[CaseRecord]
) -> tuple[list[CaseRecord], list[CaseRecord]]:
    """One label map a case, and no case that trains and validates.

    MONAI Label takes the four files of a case for four images, each with a label of its own.
    """
    seen: dict[tuple[str, ...], CaseRecord] = {}
    kept: tuple[list[CaseRecord], list[CaseRecord]] = ([], [])
    for part, records in zip(kept, (training, validation), strict=True):
        for record in records:
            if first := seen.get(record.images):
                logger.warning(
                    "case %s is listed twice: %s is used, %s is not",
                    record.case,
                    first.label,
                    record.label,
                )
                continue
            seen[record.images] = record
            part.append(record)
    return kept


def _record(image: str | os.PathLike[str]) -> CaseRecord:
    path = os.path.abspath(image)
    if record := record_beside(path):
        return record
    case = re.sub(r"\.nii(\.gz)?$", "", os.path.basename(path), flags=re.IGNORECASE)
    return CaseRecord(case, (path,), stacked=True)


def _complete(record: CaseRecord) -> CaseRecord:
    if record.missing:
        raise DataError(
            f"case {record.case} in {record.folder} lacks {', '.join(record.missing)}: put the "
            "four files of a case beside each other, or give one 4D file."
        )
    return record


def _channel_order(record: CaseRecord) -> tuple[int, ...]:
    if not record.stacked:
        return (0, 1, 2, 3)
    folder = Path(record.folder)
    for place in (folder, folder.parent):
        described = place / "dataset.json"
        if described.is_file() and '"modality"' in described.read_text(encoding="utf-8"):
            return decathlon_order(place)
    return _TASK01_ORDER if folder.name in ("imagesTr", "imagesTs") else (0, 1, 2, 3)


def _codes_of(record: CaseRecord) -> str:
    """The layout whose codes a label map has; the checks say what is wrong with a damaged one."""
    try:
        found = np.unique(np.asarray(nib.load(str(record.label)).dataobj))  # type: ignore[attr-defined]
    except (OSError, ValueError, EOFError, ImageFileError):
        return BRATS
    return BRATS2023 if 3 in found and 4 not in found else BRATS
