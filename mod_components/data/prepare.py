"""From a data folder to checked lists of cases for training or evaluation."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mod_components.data.checks import refuse_bad_cases
from mod_components.data.datalist import load_datalist, make_datalist, select
from mod_components.data.layouts import Layout, read_folder
from mod_components.data.sample import best_flair_threshold, make_sample
from mod_components.errors import DataError
from mod_components.settings import flag

__all__ = ["PreparedData", "case_name", "prepare_evaluation", "prepare_training"]

logger = logging.getLogger("mod_components.data")

DATALIST = "datalist.json"
SAMPLE = "embedded sample"


@dataclass(frozen=True)
class PreparedData:
    """Cases that are ready to be loaded.

    Attributes:
        name: the data set's name: its folder's, or ``"embedded sample"``.
        layout: channel order and label codes.
        training: cases to train on, ``{"case", "image", "label"}``.
        validation: cases to validate or evaluate on.
        datalist: the split that these come from, to be written beside the checkpoint.
        notes: what a report should say of the data.
    """

    name: str
    layout: Layout
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    datalist: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def prepare_training(
    dataset_dir: str = "",
    *,
    fold: int | None = -1,
    seed: int = 42,
    datalist: str = "",
    ckpt_dir: str = "models",
    resume: bool | str = False,
    legacy_et: bool | str = False,
) -> PreparedData:
    """Find, split and check the cases of a training, before anything else takes time.

    A resumed run takes the split that its checkpoint was written with.

    Args:
        dataset_dir: folder with cases; empty for the embedded sample.
        fold: see :func:`~mod_components.data.datalist.select`; of a resumed run, -1 is its own.
            None is -1.
        seed: seed of the split.
        datalist: path of a datalist to use again; empty to make one.
        ckpt_dir: folder of the run's checkpoints.
        resume: whether the run continues another one.
        legacy_et: see :func:`~mod_components.data.layouts.find_layout`.

    Raises:
        DataError: one error that lists everything wrong with the data, or names what contradicts
            the run to resume.
    """
    legacy = flag(legacy_et)
    fold = -1 if fold is None else fold
    written = Path(ckpt_dir) / DATALIST
    resumed = flag(resume) and written.is_file()
    source = datalist or (str(written) if resumed else "")
    root = _root(dataset_dir)
    if source:
        content = load_datalist(source)
        if not root and content.get("name") != SAMPLE:
            raise DataError(
                f"{source} splits {content['dataset_dir']}: give --dataset_dir that folder too."
            )
        if resumed:
            fold = _fold_to_resume(fold, content, written)
        root = root or content["dataset_dir"]
    else:
        root = root or _sample("training")
        content = make_datalist(root, seed=seed, legacy_et=legacy)
    training, validation = select(content, fold, root)
    layout = _checked(root, training + validation, legacy)
    name = _name(dataset_dir)
    logger.info(
        "%s (%s): %d cases to train, %d to validate",
        root,
        layout.name,
        len(training),
        len(validation),
    )
    content = {**content, "dataset_dir": root, "fold": fold, "name": name}
    return PreparedData(name, layout, training, validation, content)


def prepare_evaluation(
    dataset_dir: str = "",
    *,
    fold: int | None = None,
    datalist: str = "",
    checkpoint: str = "models/model.pt",
    output_dir: str = "",
    legacy_et: bool | str = False,
) -> PreparedData:
    """Find and check the cases that a trained network is evaluated on.

    Of the data set that the network was trained on (``datalist.json`` beside the checkpoint knows
    its cases, wherever they lie now), these are the held-out ones; of any other data set all
    labelled cases.

    Args:
        dataset_dir: folder with cases; empty for the one of the training, or the sample.
        fold: fold to evaluate instead of the training's.
        datalist: path of another datalist.
        checkpoint: the network's weights.
        output_dir: where label maps will be written; empty for nowhere.
        legacy_et: see :func:`~mod_components.data.layouts.find_layout`.

    Raises:
        DataError: one error that lists everything wrong with the data.
    """
    legacy = flag(legacy_et)
    path = Path(datalist) if datalist else Path(checkpoint).with_name(DATALIST)
    content = load_datalist(path) if datalist or path.is_file() else None
    root = _root(dataset_dir) or (content["dataset_dir"] if content else _sample("evaluation"))
    if content is None and not dataset_dir:
        content = make_datalist(root)
    if content is not None and _holds(root, content):
        cases = select(content, content.get("fold", -1) if fold is None else fold, root)[1]
        logger.info("evaluating the %d held-out cases of %s", len(cases), root)
    elif fold is not None or datalist:
        raise DataError(
            f"{path} does not split the cases of {root}: leave out --fold and --datalist to "
            "evaluate all of its labelled cases, or give the folder that was split."
        )
    else:
        cases = _labelled(root)
        logger.info("evaluating all %d labelled cases of %s", len(cases), root)
    layout = _checked(root, cases, legacy)
    _refuse_overwriting(cases, output_dir)
    sample = not dataset_dir and (content or {}).get("name", SAMPLE) == SAMPLE
    name = SAMPLE if sample else _name(root)
    notes: dict[str, Any] = {"data": name}
    if sample:
        threshold, score = best_flair_threshold(cases, layout.channel_order)
        notes["best single FLAIR threshold (z-score)"] = threshold
        notes["its mean WT Dice on these cases"] = score
    return PreparedData(name, layout, [], cases, content or {}, notes)


def case_name(meta: Mapping[str, Any], _saver: object) -> dict[str, Any]:
    """Name an output file after its case (an ``output_name_formatter`` of MONAI's ``SaveImage``).

    Args:
        meta: metadata of the scan; for a case of four files, that of the first.
    """
    name = re.sub(r"\.nii(\.gz)?$", "", os.path.basename(str(meta["filename_or_obj"])), flags=re.I)
    return {"subject": re.sub(r"[-_](t1ce|t1c)$", "", name, flags=re.I), "idx": None}


def _root(dataset_dir: str) -> str:
    text = str(dataset_dir)
    return os.path.abspath(os.path.expanduser(text)) if text else ""


def _sample(purpose: str) -> str:
    folder = str(make_sample())
    logger.info(
        "no --dataset_dir given: %s runs on the embedded sample of synthetic brains in %s. For "
        "real scans: --dataset_dir FOLDER (BraTS 2018 or later, or Decathlon Task01).",
        purpose,
        folder,
    )
    return folder


def _name(dataset_dir: str) -> str:
    return Path(_root(dataset_dir)).name if dataset_dir else SAMPLE


def _fold_to_resume(fold: int, content: Mapping[str, Any], path: Path) -> int:
    own = int(content.get("fold", -1))
    if fold not in (-1, own):
        raise DataError(
            f"the run to resume holds out fold {own} ({path}), not {fold}: leave out --fold, or "
            "train anew without --resume."
        )
    return own


def _holds(root: str, content: Mapping[str, Any]) -> bool:
    """Whether a folder holds all cases of a datalist, so that it is the data set it splits."""
    listed = {entry["case"] for entry in (*content["training"], *content["validation"])}
    return listed <= {record.case for record in read_folder(root)[1]}


def _labelled(root: str) -> list[dict[str, Any]]:
    cases = [record.as_case() for record in read_folder(root)[1] if record.label]
    if not cases:
        raise DataError(f"No case in {root} has a label map: evaluation needs labelled cases.")
    return cases


def _checked(root: str, cases: Sequence[Mapping[str, Any]], legacy_et: bool) -> Layout:
    layout, records = read_folder(root, legacy_et)
    wanted = {case["case"] for case in cases}
    if lacking := wanted - {record.case for record in records}:
        raise DataError(
            f"{root} lacks cases of the datalist: {', '.join(sorted(lacking)[:10])}. Give the "
            "folder that was split, or make a new datalist."
        )
    refuse_bad_cases([record for record in records if record.case in wanted], layout)
    return layout


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
