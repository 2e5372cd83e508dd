"""Recognise a BraTS or Decathlon folder: its cases, channel order and label codes."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mod_components.errors import DataError

logger = logging.getLogger(__name__)

CHANNELS = ("T1ce", "T1", "T2", "FLAIR")
REGIONS = ("TC", "WT", "ET")

_BRATS, _BRATS2023, _MSD = "brats", "brats2023", "msd"
_CODES = {
    _BRATS: {"necrosis": 1, "oedema": 2, "enhancing": 4},
    _BRATS2023: {"necrosis": 1, "oedema": 2, "enhancing": 3},
    _MSD: {"necrosis": 2, "oedema": 1, "enhancing": 3},
}
# The mapping of the published MSD results: codes 2 and 3 swapped.
_LEGACY_MSD_CODES = {"necrosis": 3, "oedema": 1, "enhancing": 2}
_SUFFIXES = {
    _BRATS: dict(zip(("t1ce", "t1", "t2", "flair"), CHANNELS, strict=True)),
    _BRATS2023: dict(zip(("t1c", "t1n", "t2w", "t2f"), CHANNELS, strict=True)),
}
_MODALITY_NAMES = {
    "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce",
    "t1": "T1", "t1w": "T1", "t1n": "T1",
    "t2": "T2", "t2w": "T2",
    "flair": "FLAIR", "t2f": "FLAIR",
}  # fmt: skip
_TOKENS = "|".join([*_MODALITY_NAMES, "segm?"])
_CASE_FILE = re.compile(rf"(?P<case>.+)[_-](?P<token>{_TOKENS})\.nii(?P<gz>\.gz)?", re.IGNORECASE)
_VOLUME = re.compile(r"(?P<case>[^.].*?)\.nii(\.gz)?", re.IGNORECASE)
_JUNK_FOLDERS = {"__macosx", "__pycache__", "lost+found", "$recycle.bin"}
# archive/MICCAI_BraTS_2018_Training/HGG/case is three levels down; one more is kept in reserve.
_MAX_DEPTH = 4
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
    """

    name: str
    channel_order: tuple[int, ...] = (0, 1, 2, 3)
    codes: Mapping[str, int] = field(default_factory=lambda: dict(_CODES[_BRATS]))

    @property
    def region_codes(self) -> dict[str, tuple[int, ...]]:
        """Label codes that make up each of ``REGIONS``."""
        core, oedema, enhancing = self.label_codes
        return {"TC": (core, enhancing), "WT": (core, oedema, enhancing), "ET": (enhancing,)}

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
    if os.path.isdir(root / "imagesTr"):
        return _msd_layout(root, legacy_et), _msd_records(root)
    if legacy_et:
        logger.warning("legacy_et only concerns Decathlon folders; ignored for %s", root)
    names, records = _brats_records(root)
    if not records:
        raise _nothing_found(root)
    if len(names) > 1:
        examples = " and ".join(f"{case} is {name}" for name, case in sorted(names.items()))
        message = f"{root} holds cases of two layouts, whose label codes differ ({examples})"
        raise FolderError("mixed-layouts", message, "Give the folder of one of them")
    name = next(iter(names), _BRATS)
    return Layout(name, codes=dict(_CODES[name])), records


def lone_labels(dataset_dir: str | os.PathLike[str]) -> list[str]:
    """Paths of a Decathlon folder's label maps that have no image; none for other layouts."""
    root = Path(os.path.abspath(Path(dataset_dir).expanduser()))
    images, labels = _volumes(root / "imagesTr"), _volumes(root / "labelsTr")
    return [paths[0] for case, paths in labels.items() if images and case not in images]


def _refuse_unreadable(error: OSError) -> NoReturn:
    """A folder that is passed over in silence would take its cases along."""
    message = f"Folder {error.filename} can't be read ({error.strerror})"
    mend = "Make it readable (chmod u+rx), or take it out of the data set"
    raise FolderError("unreadable-folder", message, mend) from error


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and their visible file names; linked folders too, each real folder once."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unreadable, followlinks=True):
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
    found = Counter(name for name in _SUFFIXES for token in tokens if token in _SUFFIXES[name])
    name = found.most_common(1)[0][0] if found else None
    suffixes = _SUFFIXES[name] if name else {}
    used = {token: paths for token, paths in tokens.items() if token in suffixes or token == "seg"}
    images = {suffixes[token]: paths[0] for token, paths in used.items() if token != "seg"}
    right = {channel: suffix for suffix, channel in suffixes.items() if channel not in images}
    return name, CaseRecord(
        case,
        images=tuple(images[channel] for channel in CHANNELS if channel in images),
        label=used["seg"][0] if "seg" in used else None,
        missing=tuple(channel for channel in CHANNELS if channel not in images),
        doubles=_doubles(used.values()),
        misnamed=tuple(
            (paths[0], _renamed(case, token, right[channel], paths[0]))
            for token, paths in tokens.items()
            if token not in used and (channel := _MODALITY_NAMES[token]) in right
        ),
    )


def _renamed(case: str, token: str, suffix: str, path: str) -> str:
    """The file's name with another suffix between the case's id and the extension."""
    name, start = os.path.basename(path), len(case) + 1
    return name[:start] + suffix + name[start + len(token) :]


def _doubles(groups: Iterable[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((paths[0], other) for paths in groups for other in paths[1:])


def _msd_records(root: Path) -> list[CaseRecord]:
    labels = _volumes(root / "labelsTr")
    images = _volumes(root / "imagesTr")
    if not images:
        raise _nothing_found(root)
    records = []
    for case, paths in sorted(images.items()):
        label = labels.get(case, [])
        doubles = _doubles([paths, label])
        path = label[0] if label else None
        records.append(CaseRecord(case, (paths[0],), path, stacked=True, doubles=doubles))
    return records


def _volumes(folder: Path) -> dict[str, list[str]]:
    """Case id → paths of the NIfTI files in a folder; the first path is the one to use."""
    found: dict[str, list[str]] = defaultdict(list)
    try:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    except OSError as error:
        _refuse_unreadable(error)
    for name in names:
        if match := _VOLUME.fullmatch(name):
            found[match["case"]].append(str(folder / name))
    return dict(found)


def _msd_layout(root: Path, legacy_et: bool) -> Layout:
    """Channel order and codes as the folder's dataset.json declares them."""
    path = root / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        modality = [str(content["modality"][str(i)]) for i in range(len(content["modality"]))]
        labels = {int(code): str(name).lower() for code, name in content.get("labels", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(
            "bad-dataset-json",
            f"{path} can't be read ({type(error).__name__}: {error}), so the channel order of the "
            "4D files is unknown",
            "Take the dataset.json of the data set's own archive",
        ) from error
    channels = [_MODALITY_NAMES.get(name.strip().lower()) for name in modality]
    if sorted(map(str, channels)) != sorted(CHANNELS):
        raise FolderError(
            "bad-dataset-json",
            f"{path}: modality {modality} is not one each of {', '.join(CHANNELS)}",
            "Correct the names or their order (Task01: FLAIR, T1w, t1gd, T2w)",
        )
    order = tuple(channels.index(channel) for channel in CHANNELS)
    codes = _LEGACY_MSD_CODES if legacy_et else _msd_codes(path, labels)
    return Layout(_MSD, order, dict(codes))


def _msd_codes(path: Path, labels: dict[int, str]) -> dict[str, int]:
    """Codes by the names in dataset.json; Task01's own where it names none."""
    tissues = {code: tissue for code, name in labels.items() if code and (tissue := _tissue(name))}
    if not any(labels):
        return _CODES[_MSD]
    if sorted(tissues.values()) != sorted(_CODES[_MSD]) or len(tissues) != sum(map(bool, labels)):
        raise FolderError(
            "bad-dataset-json",
            f"{path}: labels {labels} are not edema, non-enhancing and enhancing tumour",
            "Correct the names (Task01: 1 edema, 2 non-enhancing tumor, 3 enhancing tumour)",
        )
    return {tissue: code for code, tissue in tissues.items()}


def _tissue(name: str) -> str | None:
    """Tissue that a label's name means; "non-enhancing" has to be asked before "enhancing"."""
    for pattern, tissue in (("edema", "oedema"), ("necro|non", "necrosis"), ("enh", "enhancing")):
        if re.search(pattern, name):
            return tissue
    return None


def _nothing_found(root: Path) -> FolderError:
    inside = sorted(os.listdir(root))
    shown = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
    tasks = [sub for sub in inside if os.path.isdir(root / sub / "imagesTr")]
    hint = f"Did you mean {root / tasks[0]}? " if tasks else ""
    message = f"No case found in {root}; it holds {shown or 'nothing'}"
    return FolderError("no-case", message, f"{hint}{_UNDERSTOOD}")
