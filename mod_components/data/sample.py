"""The embedded sample data set: made once, as NIfTI files in BraTS 2021 layout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from mod_components.data.phantom import SHAPE, SPACING_MM, make_phantom
from mod_components.errors import DataError, SettingsError

CASES, SEED = 16, 42
_VERSION = 1
_MARKER = "sample.json"
_SUFFIXES = ("t1ce", "t1", "t2", "flair")
_THRESHOLDS = np.linspace(-1.0, 4.0, 101)
# A temporary folder this old belongs to a run that was killed.
_STALE_SECONDS = 3600


def make_sample(
    folder: str | os.PathLike[str] | None = None, cases: int = CASES, seed: int = SEED
) -> Path:
    """Make the sample data set, unless it is there already.

    Synthetic brains (64×80×64 voxels of 2.5 mm, four modalities) with tumours, a quarter of them
    for validation in splits.json; one case in eight has no enhancing tumour. The voxels depend on
    ``seed`` alone.

    Args:
        folder: the data set's folder; by default in the user's cache ($MOD_CACHE, else
            $XDG_CACHE_HOME/mod_components, else ~/.cache/mod_components).
        cases: number of cases.
        seed: seed of all cases.

    Returns:
        The folder, complete.

    Raises:
        DataError: if the folder holds something else, or can't be written.
        SettingsError: if ``cases`` is below 1.
    """
    if cases < 1:
        raise SettingsError(f"cases must be at least 1, got {cases}.")
    target = Path(os.path.abspath(Path(folder or _cached(cases, seed)).expanduser()))
    wanted = {"version": _VERSION, "cases": cases, "seed": seed}
    if _is_complete(target, wanted):
        return target
    _refuse_foreign(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    except OSError as error:
        raise DataError(
            f"the embedded sample can't be made in {target.parent} ({error.strerror}): name a "
            "folder that can be written with the environment variable MOD_CACHE, or give "
            "--dataset_dir your own data."
        ) from error
    try:
        _write_cases(temporary, cases, seed)
        (temporary / _MARKER).write_text(json.dumps(wanted, indent=4) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        _move_in(temporary, target, wanted)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def best_flair_threshold(
    cases: Sequence[Mapping[str, Any]], channel_order: Sequence[int] = (0, 1, 2, 3)
) -> tuple[float, float]:
    """The one threshold on FLAIR that segments the whole tumour best: the honest yardstick.

    FLAIR is z-scored over its non-zero voxels; thresholds from -1 to 4 in steps of 0.05 are tried.

    Args:
        cases: labelled cases as in ``find_cases``.
        channel_order: ``Layout.channel_order``.

    Returns:
        The threshold and its Dice of the whole tumour, the mean over the cases.

    Raises:
        ValueError: if there are no cases.
    """
    if not cases:
        raise ValueError("best_flair_threshold needs at least one case")
    mean_dice = np.mean([_dice_by_threshold(case, channel_order[3]) for case in cases], axis=0)
    best = int(mean_dice.argmax())
    return float(_THRESHOLDS[best]), float(mean_dice[best])


def _dice_by_threshold(case: Mapping[str, Any], flair_index: int) -> np.ndarray:
    """Dice of {z > t} with the whole tumour for every candidate t; 1 where both are empty."""
    image, tumour = case["image"], _voxels(case["label"]) > 0
    flair = _voxels(image)[..., flair_index] if isinstance(image, str) else _voxels(image[3])
    flair = flair.astype(np.float64)
    foreground = flair != 0
    values = flair[foreground]
    scores = np.full(flair.shape, -np.inf)
    scores[foreground] = (values - values.mean()) / max(values.std(), 1e-8)
    positive = _count_above(scores)
    hits = _count_above(scores[tumour])
    total = positive + np.count_nonzero(tumour)
    return np.where(total > 0, 2.0 * hits / np.maximum(total, 1), 1.0)


def _count_above(scores: np.ndarray) -> np.ndarray:
    """Number of scores above each candidate threshold."""
    bins = np.searchsorted(_THRESHOLDS, scores.ravel(), side="left")
    counts = np.bincount(bins, minlength=len(_THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def _voxels(path: str) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def _cached(cases: int, seed: int) -> Path:
    cache = os.environ.get("MOD_CACHE")
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = str(Path(base) / "mod_components")
    name = f"sample_v{_VERSION}"
    return Path(cache) / (name if (cases, seed) == (CASES, SEED) else f"{name}_{cases}_{seed}")


def _case_ids(cases: int) -> list[str]:
    return [f"Sample_{index + 1:03d}" for index in range(cases)]


def _is_complete(folder: Path, wanted: Mapping[str, int]) -> bool:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = [f"{c}/{c}_{s}.nii.gz" for c in _case_ids(wanted["cases"]) for s in (*_SUFFIXES, "seg")]
    return marker == wanted and all((folder / name).is_file() for name in names)


def _refuse_foreign(folder: Path) -> None:
    """Never replace what somebody else put there."""
    if not folder.exists():
        return
    inside = os.listdir(folder) if folder.is_dir() else [folder.name]
    ours = {_MARKER, "splits.json"}
    foreign = [name for name in inside if name not in ours and not name.startswith("Sample_")]
    if foreign:
        raise DataError(
            f"{folder} holds {', '.join(sorted(foreign)[:5])}, which is not the sample data set. "
            "Give another folder, or an empty one."
        )


def _remove_stale(target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        except FileNotFoundError:
            continue


def _write_cases(folder: Path, cases: int, seed: int) -> None:
    ids = _case_ids(cases)
    affine = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])
    affine[1, 3] = SPACING_MM * (SHAPE[1] - 1)
    for index, case in enumerate(tqdm(ids, desc="making the sample data set (once)")):
        images, labels = make_phantom((seed, index), enhancing=index % 8 != 5)
        (folder / case).mkdir()
        for suffix, voxels in zip((*_SUFFIXES, "seg"), (*images, labels), strict=True):
            image = nib.Nifti1Image(voxels, affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / case / f"{case}_{suffix}.nii.gz")
    held_out = max(1, cases // 4) if cases > 1 else 0
    splits = {"train": ids[: cases - held_out], "validation": ids[cases - held_out :]}
    text = json.dumps(splits, indent=4) + "\n"
    (folder / "splits.json").write_text(text, encoding="utf-8")


def _move_in(temporary: Path, target: Path, wanted: Mapping[str, int]) -> None:
    """Put the finished folder in its place; if another process was first, theirs stays."""
    if target.exists() and not _is_complete(target, wanted):
        # A half-written sample goes aside; a second process may be doing the same right now.
        aside = temporary.with_name(f"{temporary.name}-replaced")
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        os.rename(temporary, target)
    except OSError:
        if not _is_complete(target, wanted):
            raise
