"""Checks across the cases of a folder."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from mod_components.data.checks.facts import CaseFacts
from mod_components.data.checks.problem import ERROR, WARNING, Problem
from mod_components.data.checks.volume import brief
from mod_components.data.datalist import SPLITS_FILE, make_datalist
from mod_components.data.layouts import CaseRecord
from mod_components.errors import DataError

# How read_folder begins what went wrong, and how it begins the mend.
_FOLDER_KINDS = (
    ("no-folder", "Data folder ", "Give the folder"),
    ("no-case", "No case found", "Layouts understood"),
    ("mixed-layouts", "cases of two layouts", "Give the folder"),
    ("case-twice", "is there twice", "File names begin"),
    ("bad-dataset-json", "dataset.json can't be read", "Take the dataset.json"),
    ("bad-dataset-json", "dataset.json: ", "Correct the names"),
)


def folder_problem(root: str, error: Exception) -> Problem:
    """Why a folder can't be read at all.

    no-folder, no-case, mixed-layouts, case-twice, bad-dataset-json; unreadable-folder for the rest.
    """
    text = str(error)
    for kind, sign, mend in _FOLDER_KINDS:
        if sign in text and mend in text:
            cut = text.rindex(mend)
            return Problem("", root, ERROR, text[:cut].rstrip(" ."), text[cut:].rstrip("."), kind)
    if not isinstance(error, DataError):
        text = f"can't be read ({brief(error)})"
    return Problem("", root, ERROR, text, "give the folder that was meant", "unreadable-folder")


def folder_problems(
    root: str, records: Sequence[CaseRecord], facts: Sequence[CaseFacts]
) -> list[Problem]:
    """What only shows when the cases are seen together."""
    return [
        *_splits(root, records),
        *_orientations(root, facts),
        *_spacings(root, facts),
        *_duplicates(root, records, facts),
    ]


def _splits(root: str, records: Sequence[CaseRecord]) -> Iterator[Problem]:
    """bad-splits: there is a splits.json, and a training would refuse it."""
    path = os.path.join(root, SPLITS_FILE)
    # without these a training stops for another reason, which is reported with the case
    ready = any(r.label for r in records) and not any(r.missing for r in records)
    if os.path.exists(path) and ready:
        try:
            make_datalist(root)
        except (DataError, RecursionError) as error:
            mend = 'write {"train": [ids], "validation": [ids]}, or remove the file'
            yield Problem("", path, ERROR, str(error), mend, "bad-splits")


def _split_of(root: str) -> dict[str, str]:
    """Case id → "train" or "validation" as splits.json has it; empty where it can't be used."""
    try:
        content = json.loads(Path(root, SPLITS_FILE).read_text(encoding="utf-8"))
        return {str(case): part for part in ("train", "validation") for case in content[part]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _orientations(root: str, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    """orientation (warning): not all cases are stored as LPS, as BraTS stores them.

    Cases whose axes have another order are not counted: they can't be used (axis-order).
    """
    found = Counter(f.orientation for f in facts if re.fullmatch("[LR][PA][SI]", f.orientation))
    if set(found) - {"LPS"}:
        message = f"stored orientations: {counted(found)}; BraTS has LPS throughout"
        mend = (
            "nothing to do: cases are turned to LPS when they are loaded, and label maps are "
            "written back as their scans are stored"
        )
        yield Problem("", root, WARNING, message, mend, "orientation")


def _spacings(root: str, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    """mixed-spacing (warning): voxel sizes differ between cases by more than 1%."""
    sizes = Counter(fact.spacing_mm for fact in facts if len(fact.spacing_mm) == 3)
    columns = list(zip(*sizes, strict=True))
    if any(max(column) > 1.01 * min(column) for column in columns):
        found = Counter({spacing_text(size): count for size, count in sizes.items()})
        message = f"voxel sizes differ between cases: {counted(found)}"
        mend = "resample all cases to one voxel size, 1 mm as BraTS has"
        yield Problem("", root, WARNING, message, mend, "mixed-spacing")


def _duplicates(
    root: str, records: Sequence[CaseRecord], facts: Sequence[CaseFacts]
) -> Iterator[Problem]:
    """Cases that have voxels in common.

    duplicate-case: an image has the same shape and non-zero voxels as the same modality of another
    case; an error where splits.json has one in training and the other in validation, else a
    warning. duplicate-label (warning): only the label maps are the same.
    """
    split = _split_of(root)
    folders = {record.case: record.folder for record in records}
    labels = {record.case: record.label or record.folder for record in records}
    for (one, other), shared in _pairs(facts).items():
        images = [name for name in shared if name != "label"]
        if not images:
            message = f"its label map has the same tumour voxels as that of {one}"
            mend = "put the right label map there"
            yield Problem(other, labels[other], WARNING, message, mend, "duplicate-label")
            continue
        parts = {split.get(one, one), split.get(other, other)}
        leak = parts == {"train", "validation"}
        message = f"the same voxels as {one} in {', '.join(images)}"
        if leak:
            message += f"; one is in training, the other in validation ({SPLITS_FILE})"
        mend = "remove one of the two cases"
        severity = ERROR if leak else WARNING
        yield Problem(other, folders[other], severity, message, mend, "duplicate-case")


def _pairs(facts: Sequence[CaseFacts]) -> dict[tuple[str, str], list[str]]:
    """(first case, later case) → what they have in common."""
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for fact in facts:
        for name, digest in fact.digests.items():
            owners[name, digest].append(fact.case)
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (name, _), cases in owners.items():
        for later in cases[1:]:
            pairs[cases[0], later].append(name)
    return pairs


def spacing_text(spacing: Sequence[float]) -> str:
    """Voxel size for a reader, such as "1 × 1 × 1.5 mm"."""
    return " × ".join(f"{size:.4g}" for size in spacing) + " mm"


def counted(found: Counter[str]) -> str:
    """Such as "LPS (44), RAS (1)", the most frequent first."""
    return ", ".join(f"{name} ({count})" for name, count in found.most_common())
