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
from mod_components.data.decathlon import lone_labels
from mod_components.data.records import CaseRecord, FolderError
from mod_components.errors import DataError

_NAMED = 5
_BOTH = {"train", "validation"}


def folder_problem(root: str, error: Exception) -> Problem:
    """Why a folder can't be read at all.

    no-folder, no-case, mixed-layouts, case-twice, bad-dataset-json; unreadable-folder for the rest.
    """
    if isinstance(error, FolderError):
        return Problem("", root, ERROR, error.message, error.mend, error.kind)
    message = str(error) if isinstance(error, DataError) else f"can't be read ({brief(error)})"
    return Problem("", root, ERROR, message, "give the folder that was meant", "unreadable-folder")


def folder_problems(
    root: str,
    records: Sequence[CaseRecord],
    facts: Sequence[CaseFacts],
    legacy_et: bool = False,
) -> list[Problem]:
    """What only shows when the cases are seen together."""
    return [
        *_splits(root, records, legacy_et),
        *_labels(root, records),
        *_orientations(root, facts),
        *_spacings(root, facts),
        *_duplicates(root, records, facts),
    ]


def _splits(root: str, records: Sequence[CaseRecord], legacy_et: bool) -> Iterator[Problem]:
    """bad-splits: there is a splits.json, and a training would refuse it."""
    path = os.path.join(root, SPLITS_FILE)
    # without these a training stops for another reason, which is reported with the case
    ready = any(r.label for r in records) and not any(r.missing for r in records)
    if os.path.exists(path) and ready:
        try:
            make_datalist(root, legacy_et=legacy_et)
        except (DataError, RecursionError) as error:
            text = str(error).removeprefix(f"{path} ")
            message, _, mend = text.rpartition(". ")  # the last sentence is the mend
            if not message or isinstance(error, RecursionError):
                message, mend = text, 'write {"train": [ids], "validation": [ids]}, or remove it'
            yield Problem("", path, ERROR, message, mend.rstrip("."), "bad-splits")


def _labels(root: str, records: Sequence[CaseRecord]) -> Iterator[Problem]:
    """Label maps that are missing, or have no image (all warnings).

    no-labels: no case has one. no-label: some cases have none, most have one. label-without-image:
    a Decathlon folder has a label map of a case without an image.
    """
    bare = [record.case for record in records if not record.label]
    if len(bare) == len(records):
        mend = "it can be used with --unlabelled_dir, not as --dataset_dir for training"
        yield Problem("", root, WARNING, "no case has a label map", mend, "no-labels")
    elif bare and len(bare) < len(records) / 2:
        message = f"no label map, unlike {len(records) - len(bare)} other cases: {_some(bare)}"
        mend = "add them if there are any; without them the cases are not trained on"
        yield Problem("", root, WARNING, message, mend, "no-label")
    if lone := [os.path.basename(path) for path in lone_labels(root)]:
        message = f"label maps without an image of that name: {_some(lone)}"
        mend = "add the images, or correct the names"
        folder = os.path.join(root, "labelsTr")
        yield Problem("", folder, WARNING, message, mend, "label-without-image")


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
    for (one, other), shared in _pairs(facts, split).items():
        images = [name for name in shared if name != "label"]
        if not images:
            message = f"its label map has the same tumour voxels as that of {one}"
            mend = "put the right label map there"
            yield Problem(other, labels[other], WARNING, message, mend, "duplicate-label")
            continue
        leak = {split.get(one), split.get(other)} == _BOTH
        message = f"the same voxels as {one} in {', '.join(images)}"
        if leak:
            message += f"; one is in training, the other in validation ({SPLITS_FILE})"
        mend = "remove one of the two cases"
        severity = ERROR if leak else WARNING
        yield Problem(other, folders[other], severity, message, mend, "duplicate-case")


def _pairs(facts: Sequence[CaseFacts], split: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """(earlier case, later case) → what they have in common.

    The earlier one is the first on the other side of the split, where there is any.
    """
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for fact in facts:
        for name, digest in fact.digests.items():
            owners[name, digest].append(fact.case)
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (name, _), cases in owners.items():
        for index, later in enumerate(cases[1:], 1):
            across = [c for c in cases[:index] if {split.get(c), split.get(later)} == _BOTH]
            pairs[(across or cases)[0], later].append(name)
    return pairs


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def spacing_text(spacing: Sequence[float]) -> str:
    """Voxel size for a reader, such as "1 × 1 × 1.5 mm"."""
    return " × ".join(f"{size:.4g}" for size in spacing) + " mm"


def counted(found: Counter[str]) -> str:
    """Such as "LPS (44), RAS (1)", the most frequent first; no more than five."""
    return _some([f"{name} ({count})" for name, count in found.most_common()])
