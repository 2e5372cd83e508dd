"""Datalists: which case is trained on and which one validates, fixed by a seed."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mod_components.data.layouts import read_folder
from mod_components.data.records import CaseRecord
from mod_components.errors import DataError, SettingsError
from mod_components.files import read_object, save_json

logger = logging.getLogger(__name__)

SPLITS_FILE = "splits.json"
_KEYS = {
    "dataset_dir": str,
    "layout": str,
    "channel_order": list,
    "codes": dict,
    "seed": int,
    "folds": int,
    "training": list,
    "validation": list,
    "unlabelled": list,
}


def make_datalist(
    dataset_dir: str | os.PathLike[str],
    seed: int = 42,
    folds: int = 5,
    legacy_et: bool = False,
    *,
    allow_incomplete: bool = False,
) -> dict[str, Any]:
    """Sort the cases of a folder into training folds, fixed validation and unlabelled ones.

    Where the folder has a splits.json (``{"train": [ids], "validation": [ids]}``) its validation
    cases stay apart and only its training cases get folds. The result is JSON-able, with paths
    relative to ``dataset_dir``, and depends on the case ids, ``seed`` and ``folds`` alone.

    Args:
        dataset_dir: folder in a layout that ``find_layout`` knows.
        seed: seed of the shuffle.
        folds: number of folds; as many as there are cases if those are fewer.
        legacy_et: see ``find_layout``.
        allow_incomplete: keep cases that lack a modality in the list, so that leaving them out
            later does not deal the others into other folds.

    Raises:
        DataError: if no case has a label, a case is incomplete, or splits.json does not fit.
        ValueError: if ``folds`` is below 2.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    root = Path(os.path.abspath(Path(dataset_dir).expanduser()))
    layout, records = read_folder(root, legacy_et)
    if not allow_incomplete:
        _refuse_incomplete(records)
    labelled = _labelled(records, root)
    train, validation = _own_split(root, labelled, {record.case for record in records})
    folds = min(folds, len(train))
    if folds == 1 and not validation:
        logger.warning("%s has one labelled case: it trains and validates", root)
    fold_of = _deal(train, seed, folds)
    return {
        "dataset_dir": str(root),
        **layout.as_listed(),
        "seed": seed,
        "folds": folds,
        "training": [_entry(labelled[case], root) | {"fold": fold_of[case]} for case in train],
        "validation": [_entry(labelled[case], root) for case in validation],
        "unlabelled": [_entry(record, root) for record in records if not record.label],
    }


def select(
    datalist: Mapping[str, Any], fold: int = -1, dataset_dir: str | os.PathLike[str] | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation cases of one fold, with absolute paths.

    Args:
        datalist: from ``make_datalist`` or ``load_datalist``.
        fold: -1 for the data set's own split, or fold 0 held out (80/20) where it has none;
            0 and above for cross-validation inside the training cases.
        dataset_dir: where the data lie now; by default where they lay when the list was made.

    Returns:
        Two lists of ``{"case", "image", "label"}``.

    Raises:
        SettingsError: if there is no such fold.
    """
    folds = datalist["folds"]
    if not -1 <= fold < folds:
        raise SettingsError(f"fold must be -1 (own split) or 0 to {folds - 1}, got {fold}.")
    root = Path(os.path.abspath(Path(dataset_dir or datalist["dataset_dir"]).expanduser()))
    entries = datalist["training"]
    if fold == -1 and datalist["validation"]:
        train, validation = entries, datalist["validation"]
    elif folds == 1:
        train = validation = entries
    else:
        train = [entry for entry in entries if entry["fold"] != max(fold, 0)]
        validation = [entry for entry in entries if entry["fold"] == max(fold, 0)]
    return [_absolute(e, root) for e in train], [_absolute(e, root) for e in validation]


def save_datalist(datalist: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a datalist as JSON; the file is whole or not there at all."""
    save_json(datalist, Path(path))


def load_datalist(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a datalist back.

    Raises:
        DataError: if the file is not there, not JSON, or not a datalist.
    """
    content = read_object(Path(path), mend="Write it again with save_datalist.")
    wrong = [k for k, kind in _KEYS.items() if not isinstance(content.get(k), kind)]
    if wrong:
        raise DataError(
            f"{path} is not a datalist: {', '.join(wrong)} missing or of the wrong type. "
            "Write it again with save_datalist."
        )
    return content


def _refuse_incomplete(records: Sequence[CaseRecord]) -> None:
    lines = [f"{r.case} lacks {', '.join(r.missing)} ({r.folder})" for r in records if r.missing]
    if lines:
        shown = "\n".join(lines[:20]) + (f"\n… {len(lines) - 20} more" if len(lines) > 20 else "")
        raise DataError(f"Incomplete cases; add the files or remove the cases:\n{shown}")


def _labelled(records: Sequence[CaseRecord], root: Path) -> dict[str, CaseRecord]:
    labelled = {record.case: record for record in records if record.label}
    if not labelled:
        raise DataError(
            f"None of the {len(records)} cases in {root} has a label map. "
            "Training needs labelled cases: give the data set's training folder."
        )
    return labelled


def _own_split(
    root: Path, labelled: Mapping[str, CaseRecord], known: set[str]
) -> tuple[list[str], list[str]]:
    """Training and fixed validation ids, sorted; all for training without a splits.json."""
    path = root / SPLITS_FILE
    if not path.exists():
        return sorted(labelled), []
    mend = 'It should be {"train": [ids], "validation": [ids]}: correct or remove it.'
    content = read_object(path, mend=mend)
    if unknown := [key for key in content if key not in ("train", "validation")]:
        raise DataError(f"{path} has the unknown entries {', '.join(unknown)}. {mend}")
    lists = [content.get("train"), content.get("validation", [])]
    if not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in lists):
        raise DataError(f"{path} has no lists of case ids. {mend}")
    train, validation = (sorted(set(ids or [])) for ids in lists)
    listed = {*train, *validation}
    for what, ids in (
        ("not in the folder", listed - known),
        ("without a label", (listed & known) - set(labelled)),
        ("in both lists", set(train) & set(validation)),
    ):
        if ids:
            raise DataError(f"{path} lists cases {what}: {', '.join(sorted(ids))}. {mend}")
    if not train:
        raise DataError(f"{path} has no training case. {mend}")
    if spare := sorted(set(labelled) - listed):
        logger.info("%s: not listed and not used: %s", path, ", ".join(spare))
    return train, validation


def _deal(cases: Sequence[str], seed: int, folds: int) -> dict[str, int]:
    """Fold of each case. Only ``random()`` is promised to be the same in all Pythons."""
    generator = random.Random(seed)
    keys = {case: generator.random() for case in sorted(cases)}
    shuffled = sorted(cases, key=lambda case: keys[case])
    return {case: position % folds for position, case in enumerate(shuffled)}


def _entry(record: CaseRecord, root: Path) -> dict[str, Any]:
    def relative(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    case = record.as_case()
    image = case["image"]
    case["image"] = relative(image) if isinstance(image, str) else [relative(p) for p in image]
    case["label"] = relative(case["label"]) if case["label"] else None
    return case


def _absolute(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    image = entry["image"]
    paths = str(root / image) if isinstance(image, str) else [str(root / p) for p in image]
    return {"case": entry["case"], "image": paths, "label": str(root / entry["label"])}
