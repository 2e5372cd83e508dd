"""Choose post-processing thresholds on held-out folds of the training cases, and store them."""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from tqdm import tqdm

from mod_components.data import labels_to_regions, load_datalist, read_folder, select
from mod_components.errors import DataError, SettingsError
from mod_components.evaluation.compare import PER_CASE, read_scores
from mod_components.evaluation.thresholds import (
    NONE,
    ORDER,
    Case,
    choose,
    components,
    mean_dice,
)
from mod_components.files import DATALIST, POSTPROCESSING, file_digest, save_json

__all__ = ["refuse_own_cases", "table", "tune"]

logger = logging.getLogger("mod_components.evaluation")

_SAME_DICE = 1e-4


def tune(
    runs: Sequence[str | os.PathLike[str]], dataset_dir: str | os.PathLike[str] = ""
) -> dict[str, Any]:
    """Choose thresholds on the held-out cases of several folds and store them beside each model.

    ``postprocessing.json`` beside a run's ``model.pt`` holds ``single``, chosen on the other runs'
    held-out cases (so that the run can still be judged on its own), and ``ensemble``, chosen on
    those of all runs, for all checkpoints together. Cases of a fixed validation set are refused.

    Args:
        runs: folders with ``models/`` and ``eval/`` of trainings on different folds, each evaluated
            with ``evaluate.json``.
        dataset_dir: where the data lie now; by default where they lay when training began.

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
    read = [_read_run(folder, dataset_dir) for folder in folders]
    _refuse_shared(folders, read)
    ensemble = _choice({name: case for cases in read for name, case in cases.items()})
    report: dict[str, Any] = {"ensemble": ensemble, "runs": {}}
    for folder, own in zip(folders, read, strict=True):
        single = _choice(
            {name: case for cases in read if cases is not own for name, case in cases.items()}
        )
        content = {
            "weights": file_digest(folder / "models" / "model.pt"),
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
        change = ", ".join(f"{r} {before[r]:.4f} → {after[r]:.4f}" for r in ORDER)
        lines.append(
            f"{name[-28:]:<28} {sizes['WT']:>16g} {sizes['TC']:>6g} {sizes['ET']:>6g} "
            f"{found['thresholds']['min_et_mm3']:>9g}  {change} ({len(found['cases'])} cases)"
        )
    return "\n".join(lines)


def refuse_own_cases(
    checkpoints: Sequence[str], cases: Sequence[dict[str, Any]], other_data: bool = False
) -> None:
    """Refuse to judge thresholds on the cases that they were chosen on, or of other weights.

    Args:
        checkpoints: those that are evaluated; the thresholds lie beside the first.
        cases: the cases of the evaluation, by their ``"case"``.
        other_data: whether they are of another data set, so that equal ids mean nothing.

    Raises:
        DataError: naming the file and the cases.
    """
    path = Path(checkpoints[0]).with_name(POSTPROCESSING)
    which = "single" if len(checkpoints) == 1 else "ensemble"
    if not path.is_file():
        return  # who reads the thresholds says so
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        chosen_on, weights = content["chosen_on"][which], content["weights"]
        chosen, unnamed = set(chosen_on["cases"]), bool(chosen_on.get("number_of_cases"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read ({error}): make it again with tune.") from error
    if weights != file_digest(checkpoints[0]):
        raise DataError(f"{path} was not made for {checkpoints[0]} as it is: make it with tune.")
    if unnamed and not chosen and not other_data:
        logger.warning(
            "%s does not name the cases that its thresholds were chosen on: whether they are among "
            "these is not known.",
            path,
        )
    own = sorted(chosen & {case["case"] for case in cases})
    if own and not other_data:
        raise DataError(
            f"{path}: its thresholds ({which}) were chosen on {len(own)} of these cases "
            f"({', '.join(own[:5])}): evaluate other cases, or leave out --postprocess."
        )


def _choice(cases: dict[str, Case]) -> dict[str, Any]:
    thresholds = choose(list(cases.values()))
    return {
        "thresholds": thresholds.as_dict(),
        "cases": sorted(cases),
        "dice_before": mean_dice(list(cases.values()), NONE),
        "dice_after": mean_dice(list(cases.values()), thresholds),
    }


def _read_run(folder: Path, dataset_dir: str | os.PathLike[str]) -> dict[str, Case]:
    """Components of the held-out cases of one evaluated run, by case."""
    if not (folder / "models" / DATALIST).is_file():
        raise DataError(f"{folder} is not the folder of a trained run: it has no models/{DATALIST}")
    datalist = load_datalist(folder / "models" / DATALIST)
    fold = int(datalist.get("fold", -1))
    if fold == -1 and datalist["validation"]:
        raise DataError(
            f"{folder} holds out the data set's own validation cases, on which thresholds are "
            "judged and not chosen: give trainings on folds (--fold 0 and so on)."
        )
    _refuse_other_evaluations(folder)
    scored = read_scores(folder / "eval")
    codes = [datalist["codes"][name] for name in ("necrosis", "oedema", "enhancing")]
    found = {}
    labels = _labels(dataset_dir or datalist["dataset_dir"])
    names = [case["case"] for case in select(datalist, fold)[1] if case["case"] in scored]
    for name in tqdm(names, desc=f"reading {folder.name}"):
        path = folder / "eval" / f"{name}_seg.nii.gz"
        if name not in labels:
            raise DataError(f"{name}: its label map is gone; give --dataset_dir if it has moved.")
        pred, _ = _read(path, codes, f"{name}: evaluate the run again, with its label maps")
        truth, voxel = _read(labels[name], codes, f"{name}: copy the label map again")
        if pred.shape != truth.shape:
            raise DataError(f"{name}: {path} is not on the grid of {labels[name]}.")
        found[name] = components(pred, truth, voxel)
        _refuse_another_map(path, found[name], scored[name])
    if not found:
        raise DataError(f"{folder / 'eval'} has no held-out case of the run: evaluate it first.")
    return found


def _refuse_another_map(path: Path, case: Case, scored: Mapping[str, float]) -> None:
    """Inference writes files of these names, too, and a cut evaluation leaves some of each."""
    for region, dice in mean_dice([case], NONE).items():
        before = scored.get(f"dice_{region.lower()}", math.nan)
        if abs(before - dice) > _SAME_DICE:
            raise DataError(
                f"{path} is not the label map that was evaluated: its Dice of {region} is "
                f"{dice:.4f}, and {PER_CASE} beside it says {before:.4f}. Evaluate the run again, "
                "with its label maps."
            )


def _labels(dataset_dir: str | os.PathLike[str]) -> dict[str, str]:
    """Paths of the label maps that a folder has now, by case."""
    try:
        records = read_folder(dataset_dir)[1]
    except DataError as error:
        raise DataError(f"{error} If the data have moved, give --dataset_dir.") from error
    return {record.case: record.label for record in records if record.label}


def _read(path: str | Path, codes: Sequence[int], mend: str) -> tuple[np.ndarray, float]:
    """Regions (3, D, H, W) of a label map, and the volume of its voxels in mm³."""
    try:
        image: Any = nib.load(path)
        # as training reads it: a stored slope may leave 0.99999998 for 1
        labels = torch.from_numpy(np.asarray(image.dataobj).astype(np.float32))[None]
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError) as error:
        raise DataError(f"{path} can't be read ({error}). {mend}.") from error
    voxel = abs(float(np.linalg.det(image.affine[:3, :3])))
    return labels_to_regions(labels, codes).numpy(), voxel


def _refuse_other_evaluations(folder: Path) -> None:
    path = folder / "eval" / "summary.json"
    try:
        notes = dict(json.loads(path.read_text(encoding="utf-8"))["notes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read ({error}): evaluate the run first.") from error
    if notes.get("post-processing") or notes.get("checkpoints", 1) != 1:
        raise DataError(
            f"{path} is an evaluation of several checkpoints, or post-processed already: evaluate "
            "the run's own checkpoint without --postprocess first."
        )
    model = folder / "models" / "model.pt"
    if notes.get("weights") != file_digest(model):
        raise DataError(f"{path} is not an evaluation of {model} as it is: evaluate it again.")


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
