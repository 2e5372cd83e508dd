"""The cases that a trained network, or several together, may be judged on."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mod_components.data.datalist import load_datalist, make_datalist, select
from mod_components.data.layouts import read_folder
from mod_components.data.prepare import (
    SAMPLE,
    PreparedData,
    checked,
    data_name,
    full_path,
    sample_folder,
)
from mod_components.data.sample import best_flair_threshold
from mod_components.errors import DataError, SettingsError
from mod_components.files import DATALIST
from mod_components.settings import checkpoint_list, flag

__all__ = ["case_name", "prepare_evaluation"]

logger = logging.getLogger("mod_components.data")

Case = dict[str, Any]


def prepare_evaluation(
    dataset_dir: str = "",
    *,
    fold: int | None = None,
    datalist: str = "",
    checkpoint: str | Sequence[str] = "models/model.pt",
    output_dir: str = "",
    legacy_et: bool | str = False,
    skip_bad_cases: bool | str = False,
    all_cases: bool | str = False,
) -> PreparedData:
    """Find and check the cases that a trained network is evaluated on.

    Of the data set that the network was trained on (``datalist.json`` beside the checkpoint knows
    its cases by their ids, wherever they lie now), these are the held-out ones; of any other data
    set all labelled cases. Of several checkpoints together, these are the listed cases that none of
    them was trained on.

    Args:
        dataset_dir: folder with cases; empty for the one of the training, or the sample.
        fold: fold to evaluate instead of the training's.
        datalist: path of another datalist.
        checkpoint: the network's weights, or those of several
            (:func:`~mod_components.settings.checkpoint_list`).
        output_dir: where label maps will be written; empty for nowhere.
        legacy_et: see :func:`~mod_components.data.layouts.find_layout`.
        skip_bad_cases: evaluate the cases that pass the checks instead of refusing all.
        all_cases: evaluate all labelled cases of ``dataset_dir``, whatever the datalist says: for
            another data set whose cases happen to have ids of the training's.

    Raises:
        DataError: one error that lists everything wrong with the data.
        SettingsError: for a fold of several checkpoints, or of all cases.
    """
    checkpoints = checkpoint_list(checkpoint)
    every = flag(all_cases)
    if every and (fold is not None or datalist):
        raise SettingsError("--all_cases takes all: leave out --fold and --datalist.")
    if len(checkpoints) > 1 and (fold is not None or datalist):
        raise SettingsError(
            "several checkpoints are judged on the cases that none of them was trained on: leave "
            "out --fold and --datalist."
        )
    path = Path(datalist) if datalist else Path(checkpoints[0]).with_name(DATALIST)
    content = load_datalist(path) if datalist or path.is_file() else None
    sample = not dataset_dir and (content is None or content.get("name") == SAMPLE)
    root = full_path(dataset_dir) or (
        sample_folder("evaluation") if sample or content is None else content["dataset_dir"]
    )
    if content is None and not dataset_dir:
        content = make_datalist(root)
    if every:
        cases = _all(root)
    elif len(checkpoints) > 1:
        cases = _unseen(checkpoints, root)
    else:
        cases = _held_out(root, content, fold, datalist, path)
    layout, usable = checked(root, cases, flag(legacy_et), flag(skip_bad_cases))
    cases = [usable[case["case"]] for case in cases if case["case"] in usable]
    _refuse_overwriting(cases, output_dir)
    for member in checkpoints:
        _tell_what_was_seen(cases, Path(member).with_name(DATALIST))
    name = SAMPLE if sample else data_name(root)
    notes: dict[str, Any] = {"data": name}
    if sample:
        threshold, score = best_flair_threshold(cases, layout.channel_order)
        notes["best single FLAIR threshold (z-score)"] = threshold
        notes["its mean WT Dice on these cases"] = score
    return PreparedData(name, layout, [], cases, content or {}, notes)


def case_name(meta: Mapping[str, Any], _saver: object) -> dict[str, Any]:
    """Name an output file after its case (an ``output_name_formatter`` of MONAI's ``SaveImage``).

    With an ending, for MONAI takes one off: of a case ``1.2.840.1`` it would take ``.1``.

    Args:
        meta: metadata of the scan; for a case of four files, that of the first.
    """
    name = re.sub(r"\.nii(\.gz)?$", "", os.path.basename(str(meta["filename_or_obj"])), flags=re.I)
    case = re.sub(r"[-_](t1ce|t1c)$", "", name, flags=re.I)
    return {"subject": f"{case}.nii.gz", "idx": None}


def _held_out(
    root: str,
    content: Mapping[str, Any] | None,
    fold: int | None,
    datalist: str,
    path: Path,
) -> list[Case]:
    """Cases of one checkpoint's fold, or all labelled ones of a folder it was not trained on."""
    present = _present(root)
    if content is not None and _listed(content) & present:
        cases = select(content, content.get("fold", -1) if fold is None else fold, root)[1]
        kept = [case for case in cases if case["case"] in present]
        if not kept:
            raise DataError(
                f"{root} holds cases that the network was trained on and none that it was not "
                f"({path}): give the folder with the held-out cases, or another data set. If these "
                "are other patients whose cases have the same ids, give --all_cases true."
            )
        if gone := sorted(case["case"] for case in cases if case["case"] not in present):
            logger.warning("%s lacks %d held-out cases: %s", root, len(gone), ", ".join(gone[:10]))
        logger.info("evaluating the %d held-out cases of %s", len(kept), root)
        if os.path.realpath(root) != os.path.realpath(content["dataset_dir"]):
            _tell_what_is_left(root, content, path)
        return kept
    if fold is not None or datalist:
        raise DataError(
            f"{path} does not split the cases of {root}: leave out --fold and --datalist to "
            "evaluate all of its labelled cases, or give the folder that was split."
        )
    return _all(root)


def _tell_what_is_left(root: str, content: Mapping[str, Any], path: Path) -> None:
    if unknown := sorted({case["case"] for case in _labelled(root)} - _listed(content)):
        logger.warning(
            "%s has %d labelled cases that %s does not list, and that are not evaluated: %s. If it "
            "is another data set, give --all_cases true.",
            root,
            len(unknown),
            path,
            ", ".join(unknown[:10]),
        )


def _all(root: str) -> list[Case]:
    cases = _labelled(root)
    logger.info("evaluating all %d labelled cases of %s", len(cases), root)
    return cases


def _unseen(checkpoints: Sequence[str], root: str) -> list[Case]:
    """Cases of a folder that none of several checkpoints was trained on."""
    cases = {case["case"]: case for case in _labelled(root)}
    chosen = set(cases)
    for path in (Path(checkpoint).with_name(DATALIST) for checkpoint in checkpoints):
        if not path.is_file():
            logger.warning(
                "no %s: whether that network was trained on the cases of %s is not known.",
                path,
                root,
            )
            continue
        content = load_datalist(path)
        chosen -= _trained(content)
        if _listed(content) & set(cases):
            chosen &= _listed(content)
    if not chosen:
        raise DataError(
            f"each labelled case of {root} trained one of the {len(checkpoints)} checkpoints, so "
            "that there is nothing to judge them on together: give --dataset_dir another folder, "
            "or evaluate each fold by itself."
        )
    logger.info("evaluating the %d cases of %s that no checkpoint has seen", len(chosen), root)
    return [cases[case] for case in sorted(chosen)]


def _listed(content: Mapping[str, Any]) -> set[str]:
    return {entry["case"] for entry in (*content["training"], *content["validation"])}


def _trained(content: Mapping[str, Any]) -> set[str]:
    """Ids of the cases that the run of a datalist was trained on."""
    return {case["case"] for case in select(content, content.get("fold", -1))[0]}


def _present(root: str) -> set[str]:
    return {record.case for record in read_folder(root)[1]}


def _labelled(root: str) -> list[Case]:
    cases = [record.as_case() for record in read_folder(root)[1] if record.label]
    if not cases:
        raise DataError(f"No case in {root} has a label map: evaluation needs labelled cases.")
    return cases


def _tell_what_was_seen(cases: Sequence[Case], path: Path) -> None:
    """Warn where a checkpoint's own datalist says that it knows some of the cases, or is gone."""
    if not path.is_file():
        if path.with_name("training.json").is_file():  # a packed bundle, which leaves it out
            logger.warning(
                "no %s: whether the network was trained on these cases is not known.", path
            )
        return
    content = load_datalist(path)
    ids = {case["case"] for case in cases}
    for seen, how in (
        (_trained(content), "the network was trained on %d of these cases: %s"),
        (
            set(content.get("seen_unlabelled", [])),
            "MOD's losses saw the scans (not the labels) of %d of these cases in training: %s",
        ),
    ):
        if known := sorted(seen & ids):
            logger.warning(how, len(known), ", ".join(known[:10]))


def _refuse_overwriting(cases: Sequence[Mapping[str, Any]], output_dir: str) -> None:
    """BraTS names its label maps as we name ours: never write into the data's own folders."""
    if not output_dir:
        return
    out = os.path.realpath(os.path.expanduser(output_dir))
    for case in cases:
        if case["label"] and os.path.realpath(os.path.dirname(case["label"])) == out:
            raise DataError(
                f"--output_dir {output_dir} is the folder of {case['label']}, which a prediction "
                "of the same name would replace: give another --output_dir."
            )
