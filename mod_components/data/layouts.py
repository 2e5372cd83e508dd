"""Recognise a BraTS or Decathlon folder: its cases, channel order and label codes."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mod_components.data.decathlon import (
    decathlon_layout,
    decathlon_records,
    is_decathlon,
)
from mod_components.data.records import (
    BRATS,
    CHANNELS,
    CODES,
    MODALITY_NAMES,
    REGIONS,
    SUFFIXES,
    CaseRecord,
    FolderError,
    Layout,
    doubles_of,
    nothing_found,
    refuse_unreadable,
)
from mod_components.errors import DataError

__all__ = [
    "CHANNELS",
    "REGIONS",
    "CaseRecord",
    "DataError",
    "FolderError",
    "Layout",
    "find_cases",
    "find_layout",
    "read_folder",
    "record_beside",
    "scan",
]

logger = logging.getLogger(__name__)

_TOKENS = "|".join([*MODALITY_NAMES, "segm?"])
_CASE_FILE = re.compile(rf"(?P<case>.+)[_-](?P<token>{_TOKENS})\.nii(?P<gz>\.gz)?", re.IGNORECASE)
_JUNK_FOLDERS = {"__macosx", "__pycache__", "lost+found", "$recycle.bin"}
# archive/MICCAI_BraTS_2018_Training/HGG/case is three levels down; one more is kept in reserve.
_MAX_DEPTH = 4


def find_layout(dataset_dir: str | os.PathLike[str], legacy_et: bool = False) -> Layout:
    """Recognise the layout of a data set.

    Args:
        dataset_dir: folder with cases somewhere below it, one case's folder, or a Decathlon task.
        legacy_et: for a Decathlon folder, the mapping of the published results (code 2 as ET).

    Raises:
        DataError: if the folder does not exist, has no case, or mixes layouts.
    """
    return read_folder(dataset_dir, legacy_et)[0]


def scan(dataset_dir: str | os.PathLike[str]) -> list[CaseRecord]:
    """All cases below a folder, incomplete ones too, sorted by id.

    Raises:
        DataError: if the folder does not exist, has no case, mixes layouts, or has a case twice.
    """
    return read_folder(dataset_dir)[1]


def find_cases(dataset_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All cases below a folder as ``{"case", "image", "label"}`` with absolute paths.

    An incomplete case is among them and has the key "missing" with the names of its modalities.

    Raises:
        DataError: as in ``scan``.
    """
    return [record.as_case() for record in scan(dataset_dir)]


def read_folder(
    dataset_dir: str | os.PathLike[str], legacy_et: bool = False
) -> tuple[Layout, list[CaseRecord]]:
    """``find_layout`` and ``scan`` in one walk over the folder.

    Raises:
        DataError: as in ``find_layout`` and ``scan``.
    """
    root = Path(os.path.abspath(Path(dataset_dir).expanduser()))
    # os.path, because Path.is_dir raises where a folder may not be entered
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        message = f"Data folder {root} {what}"
        raise FolderError("no-folder", message, "Give the folder that holds the cases")
    if is_decathlon(root):
        return decathlon_layout(root, legacy_et), decathlon_records(root)
    if legacy_et:
        logger.warning("legacy_et only concerns Decathlon folders; ignored for %s", root)
    names, records = _brats_records(root)
    if not records:
        raise nothing_found(root)
    if len(names) > 1:
        examples = " and ".join(f"{case} is {name}" for name, case in sorted(names.items()))
        message = f"{root} holds cases of two layouts, whose label codes differ ({examples})"
        raise FolderError("mixed-layouts", message, "Give the folder of one of them")
    name = next(iter(names), BRATS)
    return Layout(name, codes=dict(CODES[name])), records


def record_beside(path: str | os.PathLike[str]) -> CaseRecord | None:
    """The case that a file named after a modality belongs to, with the files beside it.

    Args:
        path: one of the files of a case.

    Returns:
        The case, incomplete or not; None for a file that is not named after a modality.
    """
    folder, file = os.path.split(os.path.abspath(path))
    match = _CASE_FILE.fullmatch(file)
    if match is None or match["token"].lower() not in MODALITY_NAMES:
        return None
    files = sorted(name for name in os.listdir(folder) if name[0] != ".")
    return _brats_record(match["case"], _group(folder, files)[match["case"]])[1]


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and their visible file names; linked folders too, each real folder once."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        depth = len(Path(folder).relative_to(root).parts)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        keep = [s for s in subfolders if s[0] != "." and s.lower() not in _JUNK_FOLDERS]
        subfolders[:] = sorted(keep) if depth < _MAX_DEPTH else []
        yield folder, sorted(f for f in files if f[0] != ".")


def _brats_records(root: Path) -> tuple[dict[str, str], list[CaseRecord]]:
    """Layout names found (each with an example case), and the records of all cases."""
    names: dict[str, str] = {}
    records: dict[str, CaseRecord] = {}
    for folder, files in _walk(root):
        for case, tokens in _group(folder, files).items():
            name, record = _brats_record(case, tokens)
            if not record.images and not record.label:
                continue
            if name:
                names.setdefault(name, case)
            if case in records:
                raise _twice(records[case], record)
            records[case] = record
    return names, [records[case] for case in sorted(records)]


def _twice(one: CaseRecord, other: CaseRecord) -> FolderError:
    """The error of a case found in two folders, with the mend for what it probably is."""
    names = [", ".join(map(os.path.basename, _files(record))) for record in (one, other)]
    message = (
        f"Case {one.case} is there twice, in {one.folder} and {other.folder} "
        f"({names[0]}; {names[1]})"
    )
    mend = "File names begin with the case's own id: rename or remove one of the two"
    parts = [{*CHANNELS, "label"} - {*r.missing, "" if r.label else "label"} for r in (one, other)]
    if {"label"} in parts and not (one.missing and other.missing):
        mend = (
            "A label map alone is probably a prediction: keep those outside of the data set. "
            "If it is the case's own, put it beside the case's images, as the only one"
        )
    elif not parts[0] & parts[1]:
        mend = "The files of a case have to lie in one folder: move them together"
    return FolderError("case-twice", message, mend)


def _files(record: CaseRecord) -> list[str]:
    return [*record.images, *([record.label] if record.label else [])]


def _group(folder: str, files: list[str]) -> dict[str, dict[str, list[str]]]:
    """Case id → {suffix: paths} for the files of one folder; the first path is the one to use."""
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        if match := _CASE_FILE.fullmatch(file):
            token = match["token"].lower()
            token = "seg" if token == "segm" else token
            groups[match["case"]][token].append(os.path.join(folder, file))
    with_images = [case for case, tokens in groups.items() if set(tokens) != {"seg"}]
    labels_only = [case for case, tokens in groups.items() if set(tokens) == {"seg"}]
    # BraTS 2020's case 355 has its label under another name (W39_1998.09.19_Segm.nii).
    if len(with_images) == 1 and len(labels_only) == 1 and "seg" not in groups[with_images[0]]:
        groups[with_images[0]].update(groups.pop(labels_only[0]))
    return groups


def _brats_record(case: str, tokens: dict[str, list[str]]) -> tuple[str | None, CaseRecord]:
    found = Counter(name for name in SUFFIXES for token in tokens if token in SUFFIXES[name])
    name = found.most_common(1)[0][0] if found else None
    suffixes = SUFFIXES[name] if name else {}
    used = {token: paths for token, paths in tokens.items() if token in suffixes or token == "seg"}
    images = {suffixes[token]: paths[0] for token, paths in used.items() if token != "seg"}
    right = {channel: suffix for suffix, channel in suffixes.items() if channel not in images}
    return name, CaseRecord(
        case,
        images=tuple(images[channel] for channel in CHANNELS if channel in images),
        label=used["seg"][0] if "seg" in used else None,
        missing=tuple(channel for channel in CHANNELS if channel not in images),
        doubles=doubles_of(used.values()),
        misnamed=tuple(
            (paths[0], _renamed(case, token, right[channel], paths[0]))
            for token, paths in tokens.items()
            if token not in used and (channel := MODALITY_NAMES[token]) in right
        ),
    )


def _renamed(case: str, token: str, suffix: str, path: str) -> str:
    """The file's name with another suffix between the case's id and the extension."""
    name, start = os.path.basename(path), len(case) + 1
    return name[:start] + suffix + name[start + len(token) :]
