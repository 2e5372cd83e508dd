"""Thresholds of the post-processing, chosen on held-out folds of the training cases.

The post-processing that ``evaluate.json`` and ``inference.json`` apply with ``--postprocess true``
works from the outermost region to the innermost: connected components (26 neighbours) of WT, then
of TC in what is left, then of ET in what is left, are removed where they are smaller than their
region's threshold; at last ET as a whole where it is smaller than a threshold of its own (its
voxels become core: a few enhancing voxels in a tumour without enhancement cost the whole score).

ET lies inside TC and TC inside WT, so each component lies inside one of the region around it: sizes
and overlaps of a case's components tell the Dice for any thresholds, and the files are read once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from mod_components.data import labels_to_regions, load_datalist, select
from mod_components.data.layouts import REGIONS
from mod_components.errors import DataError, SettingsError
from mod_components.files import save_json

__all__ = ["POSTPROCESSING", "Thresholds", "choose", "table", "tune"]

logger = logging.getLogger("mod_components.evaluation")

POSTPROCESSING = "postprocessing.json"

SIZES_MM3 = (0, 8, 16, 32, 64, 125, 250, 500, 1000, 2000, 4000)
"""Candidates for the smallest component of a region."""

TOTALS_MM3 = (0, 32, 64, 125, 250, 500, 1000)
"""Candidates for the smallest enhancing tumour as a whole."""

_ORDER = ("WT", "TC", "ET")  # from the outside in
_NEIGHBOURS = np.ones((3, 3, 3))


@dataclass(frozen=True)
class Thresholds:
    """What is too small to stay, in mm³.

    Attributes:
        min_component_mm3: smallest component of TC, WT and ET.
        min_et_mm3: smallest ET as a whole.
    """

    min_component_mm3: dict[str, float]
    min_et_mm3: float

    def as_dict(self) -> dict[str, Any]:
        """As in ``postprocessing.json``."""
        return {"min_component_mm3": self.min_component_mm3, "min_et_mm3": self.min_et_mm3}


NONE = Thresholds(dict.fromkeys(REGIONS, 0), 0)


@dataclass(frozen=True)
class Components:
    """The predicted components of one region of one case.

    Attributes:
        size: volume of each in mm³ (n,).
        overlap: volume shared with the true region in mm³ (n,).
        parent: number of the component around it in the next larger region (n,).
        truth: volume of the true region in mm³.
    """

    size: np.ndarray
    overlap: np.ndarray
    parent: np.ndarray
    truth: float


Case = dict[str, Components]


def tune(runs: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Choose thresholds on the held-out cases of several folds and store them beside each model.

    ``postprocessing.json`` beside a run's ``model.pt`` holds ``single``, chosen on the other runs'
    held-out cases (so that the run can still be judged on its own), and ``ensemble``, chosen on
    those of all runs, for all checkpoints together. Cases of a fixed validation set are refused.

    Args:
        runs: folders with ``models/`` and ``eval/`` of trainings on different folds, each evaluated
            with ``evaluate.json``.

    Returns:
        The content of the files: thresholds by run and of the ensemble, with the mean Dice of each
        region before and after, on the cases they were chosen on.

    Raises:
        SettingsError: for fewer than two runs, or runs that share held-out cases.
        DataError: when a run was not evaluated, was post-processed, or held out the fixed
            validation set.
    """
    if len(runs) < 2:
        raise SettingsError(
            "tune needs the runs of at least two folds: thresholds for one are chosen on the "
            "held-out cases of the others."
        )
    folders = [Path(os.path.expanduser(run)) for run in runs]
    read = [_read_run(folder) for folder in folders]
    _refuse_shared(folders, read)
    everything = [case for cases in read for case in cases.values()]
    ensemble = _choice(everything)
    report: dict[str, Any] = {"ensemble": ensemble, "runs": {}}
    for folder, own in zip(folders, read, strict=True):
        others = [case for cases in read if cases is not own for case in cases.values()]
        single = _choice(others)
        content = {
            "single": single["thresholds"],
            "ensemble": ensemble["thresholds"],
            "chosen_on": {
                "single": {key: value for key, value in single.items() if key != "thresholds"},
                "ensemble": {key: value for key, value in ensemble.items() if key != "thresholds"},
            },
        }
        save_json(content, folder / "models" / POSTPROCESSING)
        report["runs"][str(folder)] = single
    return report


def choose(cases: Sequence[Case]) -> Thresholds:
    """The thresholds of the largest mean Dice, from the outermost region to the innermost.

    Of equal ones the smallest is taken, so that nothing is removed without a gain.

    Args:
        cases: components by region, from :func:`components`.
    """
    chosen: dict[str, float] = dict.fromkeys(REGIONS, 0)
    for region in ("WT", "TC"):
        scores = [
            mean_dice(cases, Thresholds({**chosen, region: size}, 0))[region] for size in SIZES_MM3
        ]
        chosen[region] = SIZES_MM3[int(np.argmax(np.round(scores, 9)))]
    grid = [(size, total) for size in SIZES_MM3 for total in TOTALS_MM3]
    scores = [
        mean_dice(cases, Thresholds({**chosen, "ET": size}, total))["ET"] for size, total in grid
    ]
    chosen["ET"], total = grid[int(np.argmax(np.round(scores, 9)))]
    return Thresholds(chosen, total)


def table(report: dict[str, Any]) -> str:
    """Lines of a table to read, from what :func:`tune` returns."""
    lines = [
        f"{'chosen for':<28} {'smallest mm³: WT':>16} {'TC':>6} {'ET':>6} {'ET in all':>9}  Dice"
    ]
    for name, found in [*report["runs"].items(), ("all together", report["ensemble"])]:
        sizes, before, after = (
            found["thresholds"]["min_component_mm3"],
            found["dice_before"],
            found["dice_after"],
        )
        change = ", ".join(f"{r} {before[r]:.4f} → {after[r]:.4f}" for r in _ORDER)
        lines.append(
            f"{name[-28:]:<28} {sizes['WT']:>16g} {sizes['TC']:>6g} {sizes['ET']:>6g} "
            f"{found['thresholds']['min_et_mm3']:>9g}  {change} ({found['cases']} cases)"
        )
    return "\n".join(lines)


def mean_dice(cases: Sequence[Case], thresholds: Thresholds) -> dict[str, float]:
    """Mean Dice of each region over cases after post-processing; two empty masks count 1."""
    scores = np.array([list(_dice(case, thresholds).values()) for case in cases])
    return dict(zip(_ORDER, scores.mean(axis=0).tolist(), strict=True))


def components(pred: np.ndarray, truth: np.ndarray, voxel_mm3: float) -> Case:
    """Sizes and overlaps of a case's predicted components.

    Args:
        pred: predicted regions TC, WT, ET, nested, (3, D, H, W), bool.
        truth: true regions, likewise.
        voxel_mm3: volume of a voxel.
    """
    found: Case = {}
    around = np.zeros(pred.shape[1:], int)
    for region in _ORDER:
        channel = REGIONS.index(region)
        parts, number = ndimage.label(pred[channel], _NEIGHBOURS)
        flat = parts.ravel()
        first = np.zeros(number + 1, int)
        first[flat[::-1]] = np.arange(flat.size)[::-1]  # a voxel of each component
        found[region] = Components(
            size=np.bincount(flat, minlength=number + 1)[1:] * voxel_mm3,
            overlap=np.bincount(flat[truth[channel].ravel()], minlength=number + 1)[1:] * voxel_mm3,
            parent=around.ravel()[first[1:]] - 1,
            truth=float(truth[channel].sum() * voxel_mm3),
        )
        around = parts
    return found


def _dice(case: Case, thresholds: Thresholds) -> dict[str, float]:
    scores: dict[str, float] = {}
    kept = np.ones(1, bool)
    for region in _ORDER:
        part = case[region]
        inside = kept[part.parent] if region != "WT" else np.ones(len(part.size), bool)
        # a volume that is a whole number of voxels must not fall to the rounding of mm³
        kept = inside & (part.size >= thresholds.min_component_mm3[region] - 1e-6)
        volume = float(part.size[kept].sum())
        overlap = float(part.overlap[kept].sum())
        if region == "ET" and volume < thresholds.min_et_mm3 - 1e-6:
            volume = overlap = 0.0
        total = volume + part.truth
        scores[region] = 2 * overlap / total if total else 1.0
    return scores


def _choice(cases: Sequence[Case]) -> dict[str, Any]:
    thresholds = choose(cases)
    return {
        "thresholds": thresholds.as_dict(),
        "cases": len(cases),
        "dice_before": mean_dice(cases, NONE),
        "dice_after": mean_dice(cases, thresholds),
    }


def _read_run(folder: Path) -> dict[str, Case]:
    """Components of the held-out cases of one evaluated run, by case."""
    datalist = load_datalist(folder / "models" / "datalist.json")
    fold = int(datalist.get("fold", -1))
    if fold == -1 and datalist["validation"]:
        raise DataError(
            f"{folder} holds out the data set's own validation cases, on which thresholds are "
            "judged and not chosen: give trainings on folds (--fold 0 and so on)."
        )
    _refuse_other_evaluations(folder / "eval" / "summary.json")
    codes = [datalist["codes"][name] for name in ("necrosis", "oedema", "enhancing")]
    found = {}
    for case in tqdm(select(datalist, fold)[1], desc=f"reading {folder.name}"):
        path = folder / "eval" / f"{case['case']}_seg.nii.gz"
        if not path.is_file():
            raise DataError(
                f"{case['case']}: {path} does not exist: evaluate the run first (evaluate.json "
                f"with --bundle_root {folder})."
            )
        pred, _ = _read(path, codes)
        truth, voxel = _read(case["label"], codes)
        if pred.shape != truth.shape:
            raise DataError(f"{case['case']}: {path} is not on the grid of {case['label']}.")
        found[case["case"]] = components(pred, truth, voxel)
    return found


def _read(path: str | Path, codes: Sequence[int]) -> tuple[np.ndarray, float]:
    """Regions (3, D, H, W) of a label map, and the volume of its voxels in mm³."""
    image: Any = nib.load(path)
    labels = torch.from_numpy(np.asarray(image.dataobj).astype(np.int64))[None]
    voxel = abs(float(np.linalg.det(image.affine[:3, :3])))
    return labels_to_regions(labels, codes).numpy(), voxel


def _refuse_other_evaluations(path: Path) -> None:
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))["notes"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} can't be read ({error}): evaluate the run first.") from error
    if notes.get("post-processing") or notes.get("checkpoints", 1) != 1:
        raise DataError(
            f"{path} is an evaluation of several checkpoints, or post-processed already: evaluate "
            "the run's own checkpoint without --postprocess first."
        )


def _refuse_shared(folders: Sequence[Path], read: Sequence[dict[str, Case]]) -> None:
    owner: dict[str, Path] = {}
    for folder, cases in zip(folders, read, strict=True):
        for case in cases:
            if case in owner:
                raise SettingsError(
                    f"{owner[case]} and {folder} both hold out {case}: give runs of different "
                    "folds of one data set."
                )
            owner[case] = folder
