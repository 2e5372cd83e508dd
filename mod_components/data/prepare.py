"""From a data folder to checked lists of cases for training or evaluation."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from mod_components.data.checks import refuse_bad_cases
from mod_components.data.datalist import load_datalist, make_datalist, save_datalist, select
from mod_components.data.layouts import Layout, read_folder
from mod_components.data.sample import best_flair_threshold, make_sample
from mod_components.errors import DataError
from mod_components.settings import flag

__all__ = ["PreparedData", "case_name", "prepare_evaluation", "prepare_training"]

logger = logging.getLogger("mod_components.data")

DATALIST = "datalist.json"


@dataclass(frozen=True)
class PreparedData:
    """Cases that are ready to be loaded.

    Attributes:
        name: the data set's name: its folder's, or ``"embedded sample"``.
        layout: channel order and label codes.
        training: cases to train on, ``{"case", "image", "label"}``.
        validation: cases to validate or evaluate on.
        notes: what a report should say of the data.
    """

    name: str
    layout: Layout
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    notes: Mapping[str, Any] = field(default_factory=dict)


def prepare_training(
    dataset_dir: str = "",
    *,
    fold: int = -1,
    seed: int = 42,
    datalist: str = "",
    ckpt_dir: str = "models",
    resume: bool | str = False,
) -> PreparedData:
    """Find, split and check the cases of a training, before anything else takes time.

    The split is written to ``datalist.json`` in ``ckpt_dir``. A resumed run reads it from there; a
    new run takes it with ``datalist``.

    Args:
        dataset_dir: folder with cases; empty for the embedded sample.
        fold: see :func:`~mod_components.data.datalist.select`.
        seed: seed of the split.
        datalist: path of a datalist to use again; empty to make one.
        ckpt_dir: folder of the run's checkpoints.
        resume: whether the run continues another one.

    Raises:
        DataError: one error that lists everything wrong with the data.
    """
    written = Path(ckpt_dir) / DATALIST
    if not datalist and flag(resume) and written.is_file():
        datalist = str(written)
    root = str(dataset_dir) or _sample("training", datalist)
    content = load_datalist(datalist) if datalist else make_datalist(root, seed=seed)
    training, validation = select(content, fold, root)
    layout = _checked(root, training + validation)
    logger.info(
        "%s (%s): %d cases to train, %d to validate",
        root,
        layout.name,
        len(training),
        len(validation),
    )
    if idist.get_rank() == 0:
        save_datalist({**content, "dataset_dir": os.path.abspath(root), "fold": fold}, written)
    return PreparedData(_name(dataset_dir), layout, training, validation)


def prepare_evaluation(
    dataset_dir: str = "",
    *,
    fold: int | None = None,
    datalist: str = "",
    ckpt_dir: str = "models",
) -> PreparedData:
    """Find and check the cases that a trained network is evaluated on.

    Of the data set that the network was trained on (``datalist.json`` in ``ckpt_dir`` knows), these
    are the held-out cases; of any other data set all labelled cases.

    Args:
        dataset_dir: folder with cases; empty for the one of the training, or the sample.
        fold: fold to evaluate instead of the training's.
        datalist: path of another datalist.
        ckpt_dir: folder of the checkpoint.

    Raises:
        DataError: one error that lists everything wrong with the data.
    """
    path = Path(datalist) if datalist else Path(ckpt_dir) / DATALIST
    content = load_datalist(path) if datalist or path.is_file() else None
    root = str(dataset_dir) or (content["dataset_dir"] if content else _sample("evaluation", ""))
    same = content is not None and os.path.realpath(content["dataset_dir"]) == os.path.realpath(
        root
    )
    if content is not None and (same or datalist):
        own = content.get("fold", -1)
        cases = select(content, own if fold is None else fold, root)[1]
        logger.info("evaluating the %d held-out cases of %s", len(cases), root)
    elif content is None and not dataset_dir:
        cases = select(make_datalist(root), -1 if fold is None else fold)[1]
    else:
        cases = _labelled(root)
        logger.info("evaluating all %d labelled cases of %s", len(cases), root)
    layout = _checked(root, cases)
    sample = Path(root).name.startswith("sample_v") and not dataset_dir
    notes: dict[str, Any] = {"data": _name("" if sample else root)}
    if sample:
        threshold, score = best_flair_threshold(cases, layout.channel_order)
        notes["best single FLAIR threshold (z-score)"] = threshold
        notes["its mean WT Dice on these cases"] = score
    return PreparedData(str(notes["data"]), layout, [], cases, notes)


def case_name(meta: Mapping[str, Any], _saver: object) -> dict[str, Any]:
    """Name an output file after its case (an ``output_name_formatter`` of MONAI's ``SaveImage``).

    Args:
        meta: metadata of the scan; for a case of four files, that of the first.
    """
    name = re.sub(r"\.nii(\.gz)?$", "", os.path.basename(str(meta["filename_or_obj"])), flags=re.I)
    return {"subject": re.sub(r"[-_](t1ce|t1c)$", "", name, flags=re.I), "idx": None}


def _sample(purpose: str, datalist: str) -> str:
    if datalist:
        return str(json.loads(Path(datalist).read_text(encoding="utf-8"))["dataset_dir"])
    folder = str(make_sample())
    logger.info(
        "no --dataset_dir given: %s runs on the embedded sample of synthetic brains in %s. For "
        "real scans: --dataset_dir FOLDER (BraTS 2018 or later, or Decathlon Task01).",
        purpose,
        folder,
    )
    return folder


def _name(dataset_dir: str) -> str:
    return Path(dataset_dir).resolve().name if dataset_dir else "embedded sample"


def _labelled(root: str) -> list[dict[str, Any]]:
    cases = [record.as_case() for record in read_folder(root)[1] if record.label]
    if not cases:
        raise DataError(f"No case in {root} has a label map: evaluation needs labelled cases.")
    return cases


def _checked(root: str, cases: list[dict[str, Any]]) -> Layout:
    layout, records = read_folder(root)
    wanted = {case["case"] for case in cases}
    refuse_bad_cases([record for record in records if record.case in wanted], layout)
    return layout
