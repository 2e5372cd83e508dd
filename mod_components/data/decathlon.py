"""Read the folder of a Decathlon task."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path

from mod_components.data.records import (
    CHANNELS,
    CODES,
    MODALITY_NAMES,
    MSD,
    CaseRecord,
    FolderError,
    Layout,
    doubles_of,
    nothing_found,
    refuse_unreadable,
)

__all__ = [
    "decathlon_layout",
    "decathlon_order",
    "decathlon_records",
    "is_decathlon",
    "lone_labels",
]

_VOLUME = re.compile(r"(?P<case>[^.].*?)\.nii(\.gz)?", re.IGNORECASE)
# The mapping of the published MSD results: codes 2 and 3 swapped.
_LEGACY_CODES = {"necrosis": 3, "oedema": 1, "enhancing": 2}


def is_decathlon(root: Path) -> bool:
    """Whether a folder is that of a Decathlon task."""
    # os.path, because Path.is_dir raises where a folder may not be entered
    return os.path.isdir(root / "imagesTr")


def lone_labels(dataset_dir: str | os.PathLike[str]) -> list[str]:
    """Paths of a Decathlon folder's label maps that have no image; none for other layouts."""
    root = Path(os.path.abspath(Path(dataset_dir).expanduser()))
    images, labels = _volumes(root / "imagesTr"), _volumes(root / "labelsTr")
    return [paths[0] for case, paths in labels.items() if images and case not in images]


def decathlon_records(root: Path) -> list[CaseRecord]:
    labels = _volumes(root / "labelsTr")
    images = _volumes(root / "imagesTr")
    if not images:
        raise nothing_found(root)
    records = []
    for case, paths in sorted(images.items()):
        label = labels.get(case, [])
        doubles = doubles_of([paths, label])
        path = label[0] if label else None
        records.append(CaseRecord(case, (paths[0],), path, stacked=True, doubles=doubles))
    return records


def _volumes(folder: Path) -> dict[str, list[str]]:
    """Case id → paths of the NIfTI files in a folder; the first path is the one to use."""
    found: dict[str, list[str]] = defaultdict(list)
    try:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    except OSError as error:
        refuse_unreadable(error)
    for name in names:
        if match := _VOLUME.fullmatch(name):
            found[match["case"]].append(str(folder / name))
    return dict(found)


def decathlon_layout(root: Path, legacy_et: bool) -> Layout:
    """Channel order and codes as the folder's dataset.json declares them."""
    order, labels = _declared(root)
    codes = _LEGACY_CODES if legacy_et else _codes(root / "dataset.json", labels)
    return Layout(MSD, order, dict(codes))


def decathlon_order(root: Path) -> tuple[int, ...]:
    """Channel order alone, whatever the dataset.json says of labels."""
    return _declared(root)[0]


def _declared(root: Path) -> tuple[tuple[int, ...], dict[int, str]]:
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
    channels = [MODALITY_NAMES.get(name.strip().lower()) for name in modality]
    if sorted(map(str, channels)) != sorted(CHANNELS):
        raise FolderError(
            "bad-dataset-json",
            f"{path}: modality {modality} is not one each of {', '.join(CHANNELS)}",
            "Correct the names or their order (Task01: FLAIR, T1w, t1gd, T2w)",
        )
    return tuple(channels.index(channel) for channel in CHANNELS), labels


def _codes(path: Path, labels: dict[int, str]) -> dict[str, int]:
    """Codes by the names in dataset.json; Task01's own where it names none."""
    tissues = {code: tissue for code, name in labels.items() if code and (tissue := _tissue(name))}
    if not any(labels):
        return CODES[MSD]
    if sorted(tissues.values()) != sorted(CODES[MSD]) or len(tissues) != sum(map(bool, labels)):
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
