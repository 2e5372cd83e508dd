"""From a data folder to checked lists of cases for training."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mod_components.data.checks import usable_cases
from mod_components.data.datalist import load_datalist, make_datalist, select
from mod_components.data.layouts import read_folder
from mod_components.data.listed import usable_listed
from mod_components.data.records import CaseRecord, Layout
from mod_components.data.sample import make_sample
from mod_components.data.written import (
    fold_to_repeat,
    fold_to_resume,
    refuse_another_split,
    refuse_other_codes,
)
from mod_components.errors import DataError
from mod_components.files import DATALIST
from mod_components.settings import flag

__all__ = ["PreparedData", "prepare_training"]

logger = logging.getLogger("mod_components.data")

# What a datalist says of one run; a run that takes its split over does not take these.
_OF_A_RUN = ("left_out", "unlabelled_dir", "seen_unlabelled")
SAMPLE = "embedded sample"
LISTED = "listed cases"


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
        unlabelled: cases for MOD's losses alone, ``{"case", "image"}``.
        unlabelled_order: channel order of the unlabelled cases' files.
    """

    name: str
    layout: Layout
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    datalist: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: list[dict[str, Any]] = field(default_factory=list)
    unlabelled_order: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def shares_cases(self) -> bool:
        """Whether a case both trains and validates, as the only one of a data set does."""
        held_out = {case["case"] for case in self.validation}
        return any(case["case"] in held_out for case in self.training)


def prepare_training(
    dataset_dir: str = "",
    *,
    fold: int | None = -1,
    seed: int = 42,
    datalist: str = "",
    ckpt_dir: str = "models",
    resume: bool | str = False,
    legacy_et: bool | str = False,
    unlabelled_dir: str | None = "",
    skip_bad_cases: bool | str = False,
    listed: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> PreparedData:
    """Find, split and check the cases of a training, before anything else takes time.

    A resumed run takes the split that its checkpoint was written with.

    Args:
        dataset_dir: folder with cases; empty for the embedded sample.
        fold: see :func:`~mod_components.data.datalist.select`; of a resumed run, and of a datalist
            that a run has written, -1 is that run's. None is -1.
        seed: seed of the split.
        datalist: path of a datalist to use again; empty to make one.
        ckpt_dir: folder of the run's checkpoints.
        resume: whether the run continues another one.
        legacy_et: see :func:`~mod_components.data.layouts.find_layout`.
        unlabelled_dir: folder with scans for MOD's losses alone; its label maps are not read, and
            cases that train or validate are left out. May be ``dataset_dir`` itself: then these
            are its cases without a label, or that its splits.json does not list. Empty for none,
            or for that of the run to resume; None for none at all.
        skip_bad_cases: train on the cases that pass the checks instead of refusing all.
        listed: cases that another program has put in place of these, under "training" and
            "validation" (:func:`~mod_components.settings.listed_cases`); nothing else is looked
            for then.

    Raises:
        DataError: one error that lists everything wrong with the data, or names what contradicts
            the run to resume.
    """
    legacy, skip = flag(legacy_et), flag(skip_bad_cases)
    if listed:
        layout, training, validation = usable_listed(listed["training"], listed["validation"], skip)
        logger.info("%d listed cases to train, %d to validate", len(training), len(validation))
        return PreparedData(LISTED, layout, training, validation)
    fold = -1 if fold is None else fold
    written = Path(ckpt_dir) / DATALIST
    resumed = flag(resume) and written.is_file()
    source = os.path.expanduser(datalist) or (str(written) if resumed else "")
    root = full_path(dataset_dir)
    if source:
        content = load_datalist(source)
        if resumed:
            refuse_another_split(content, written, source)
            content = load_datalist(written)
        else:
            content = {key: value for key, value in content.items() if key not in _OF_A_RUN}
            fold = fold_to_repeat(fold, content, source)
        if not root and content.get("name") != SAMPLE:
            raise DataError(
                f"{source} splits {content['dataset_dir']}: give --dataset_dir that folder too."
            )
        if resumed:
            fold = fold_to_resume(fold, content, written)
        root = root or (
            sample_folder("training") if content.get("name") == SAMPLE else content["dataset_dir"]
        )
    else:
        root = root or sample_folder("training")
        # what is incomplete is reported below, with all else that is wrong
        content = make_datalist(root, seed=seed, legacy_et=legacy, allow_incomplete=True)
    training, validation = select(content, fold, root)
    wanted = [case for case in training + validation if case["case"] not in left_out(content)]
    layout, usable = checked(root, wanted, legacy, skip)
    if resumed:
        refuse_other_codes(layout, content, written)
    content = {**content, **layout.as_listed()}  # a datalist that was given may be older
    gone = {case["case"] for case in training + validation} - set(usable)
    training = [usable[case["case"]] for case in training if case["case"] in usable]
    validation = [usable[case["case"]] for case in validation if case["case"] in usable]
    if not training or not validation:
        raise DataError(f"no case of {root} is left to {'validate' if training else 'train'} on.")
    name = data_name(dataset_dir)
    logger.info(
        "%s (%s): %d cases to train, %d to validate",
        root,
        layout.name,
        len(training),
        len(validation),
    )
    content = {**content, "dataset_dir": root, "fold": fold, "name": name}
    content["left_out"] = sorted(gone)
    unlabelled: list[dict[str, Any]] = []
    order: tuple[int, ...] = (0, 1, 2, 3)
    if unlabelled_dir is not None:
        before = str(content.get("unlabelled_dir", ""))
        folder = full_path(unlabelled_dir) or before
        known = set(content.get("seen_unlabelled", []))
        unlabelled, order = _unlabelled(folder, root, content, skip)
        if folder == before:  # a resumed run goes on with the scans that it began with
            unlabelled = [case for case in unlabelled if case["case"] in known]
        if unlabelled:
            seen = {case["case"] for case in unlabelled} | known
            content |= {"unlabelled_dir": folder, "seen_unlabelled": sorted(seen)}
    prepared = PreparedData(
        name,
        layout,
        training,
        validation,
        content,
        unlabelled=unlabelled,
        unlabelled_order=order,
    )
    if prepared.shares_cases:
        logger.warning("the one case of %s trains and validates: its Dice tells nothing", root)
    return prepared


def _unlabelled(
    folder: str, root: str, content: Mapping[str, Any], skip: bool
) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """Checked unlabelled cases and their channel order, without any that trains or validates."""
    own = content["unlabelled"]
    if not folder:
        if own:
            logger.info(
                "%d cases of %s have no label and are not used; --unlabelled_dir %s lets MOD's "
                "losses learn from them.",
                len(own),
                root,
                root,
            )
        return [], (0, 1, 2, 3)
    try:
        layout, records = read_folder(folder)
    except DataError as error:
        raise DataError(f"--unlabelled_dir: {error}") from error
    listed = {entry["case"] for entry in (*content["training"], *content["validation"])}
    free = [dataclasses.replace(r, label=None) for r in records if r.case not in listed]
    if not free:
        raise DataError(
            f"--unlabelled_dir {folder}: each of its {len(records)} cases trains or validates in "
            "this run. Give a folder with other scans."
        )
    kept = usable_cases(free, layout, skip_bad=skip)[0]
    logger.info(
        "%s (%s): %d unlabelled cases for MOD's losses%s",
        folder,
        layout.name,
        len(kept),
        f", {len(records) - len(free)} left out as they train or validate"
        if len(free) < len(records)
        else "",
    )
    return [_without_label(record) for record in kept], layout.channel_order


def _without_label(record: CaseRecord) -> dict[str, Any]:
    return {key: value for key, value in record.as_case().items() if key in ("case", "image")}


def checked(
    root: str, cases: Sequence[Mapping[str, Any]], legacy_et: bool, skip_bad: bool = False
) -> tuple[Layout, dict[str, dict[str, Any]]]:
    """Check the files of some labelled cases of a folder, as they lie there now.

    Args:
        root: the data set's folder.
        cases: the cases, by their ``"case"``.
        legacy_et: see :func:`~mod_components.data.layouts.find_layout`.
        skip_bad: leave bad cases out instead of refusing all.

    Returns:
        The folder's layout, and by their ids the cases that can be used, with today's paths.

    Raises:
        DataError: if a case is not there, or, unless bad ones are left out, has an error or no
            label map any more.
    """
    layout, records = read_folder(root, legacy_et)
    wanted = {case["case"] for case in cases}
    if lacking := wanted - {record.case for record in records}:
        raise DataError(
            f"{root} lacks cases of the datalist: {', '.join(sorted(lacking)[:10])}. Give the "
            "folder that was split, or make a new datalist."
        )
    chosen = [record for record in records if record.case in wanted]
    if bare := [record.case for record in chosen if not record.label]:
        message = f"{root} has no label map of {', '.join(bare[:10])} any more"
        if not skip_bad:
            raise DataError(f"{message}: put it back, or leave the case out with --skip_bad_cases.")
        logger.warning("%s: left out", message)
        chosen = [record for record in chosen if record.label]
    usable, _ = usable_cases(chosen, layout, skip_bad=skip_bad)
    return layout, {record.case: record.as_case() for record in usable}


def left_out(content: Mapping[str, Any]) -> set[str]:
    """Cases that a run to resume left out: mended meanwhile or not, it goes on without them."""
    return set(content.get("left_out", []))


def full_path(folder: str) -> str:
    """Absolute path of a folder, ``~`` resolved; empty for empty."""
    text = str(folder)
    return os.path.abspath(os.path.expanduser(text)) if text else ""


def sample_folder(purpose: str) -> str:
    """The embedded sample, made if need be, with a line in the log that says so."""
    folder = str(make_sample())
    logger.info(
        "no --dataset_dir given: %s runs on the embedded sample of synthetic brains in %s. For "
        "real scans: --dataset_dir FOLDER (BraTS 2018 or later, or Decathlon Task01).",
        purpose,
        folder,
    )
    return folder


def data_name(dataset_dir: str) -> str:
    """What a data set is called in files: its folder's name, never its path."""
    return Path(full_path(dataset_dir)).name if dataset_dir else SAMPLE
