"""A picture of one case on disk: its scans, its label map and a prediction."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from monai.transforms import Compose, LoadImaged

from mod_components.data import (
    CaseRecord,
    LabelsToRegionsd,
    Layout,
    ReorderChannelsd,
    check_cases,
    read_folder,
    refuse_bad_cases,
)
from mod_components.errors import DataError, SettingsError
from mod_components.evaluation.pictures import draw_case, picture_bytes, to_lps
from mod_components.files import write_atomically

__all__ = ["load_case", "view_case"]

_EXAMPLES = 5
_KINDS = ("jpeg", "jpg", "pdf", "png", "svg", "tif", "tiff", "webp")


def view_case(
    case: str | os.PathLike[str],
    pred: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    dataset_dir: str | os.PathLike[str] = "",
    legacy_et: bool = False,
) -> Path:
    """Draw a case's four modalities in three planes, with true and predicted outlines.

    Where there are a label map and a prediction, the caption gives their Dice and HD95 (mm).

    Args:
        case: the case's folder (or a data set's folder with this case alone), or with
            ``dataset_dir`` the case's id.
        pred: a predicted label map (NIfTI) in the data set's codes, on the grid of the scans.
        output: file to write (.png, .jpg, .pdf, .svg, .tif or .webp), or a folder that is there;
            ``<case>.png`` in the current folder where it is not given.
        dataset_dir: folder of the data set in which ``case`` is looked up.
        legacy_et: for a Decathlon folder, the label codes of the published results.

    Returns:
        The file written.

    Raises:
        DataError: if the case is not found or can't be used, or the prediction does not fit it.
        SettingsError: if the output's format is none of these, or it can't be written.
    """
    layout, record = _find(case, dataset_dir, legacy_et)
    path = _output(output, record.case)
    refuse_bad_cases([record], layout)
    if pred is not None:
        _check_prediction(Path(pred).expanduser(), record, layout)
    volumes = load_case(record, layout, pred)
    figure = draw_case(
        volumes["image"],
        volumes.get("pred"),
        volumes.get("label"),
        title=record.case,
        channels=("FLAIR", "T1ce", "T1", "T2"),
        distances=True,
    )
    content = picture_bytes(figure, path.suffix[1:].lower())
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise SettingsError(
            f"--output {path}: can't be written ({error.strerror}: {error.filename}). Name a file "
            "in a folder that you may write to."
        ) from error
    return path


def _find(
    case: str | os.PathLike[str], dataset_dir: str | os.PathLike[str], legacy_et: bool
) -> tuple[Layout, CaseRecord]:
    if not str(dataset_dir):
        folder = Path(case).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"{case} is not a folder. Give a case's folder, or the case's id and the data "
                "set's folder: CASE --dataset_dir DIR."
            )
        layout, records = read_folder(folder, legacy_et)
        if len(records) == 1:
            return layout, records[0]
        raise DataError(
            f"{folder} holds {len(records)} cases. Give one's id and the folder: "
            f"{records[0].case} --dataset_dir {folder}."
        )
    layout, records = read_folder(dataset_dir, legacy_et)
    found = [record for record in records if record.case == str(case)]
    if not found:
        names = ", ".join(record.case for record in records[:_EXAMPLES])
        names += " …" if len(records) > _EXAMPLES else ""
        raise DataError(
            f"{dataset_dir} has no case {case}. Give one of its {len(records)}: {names}"
        )
    return layout, found[0]


def _check_prediction(pred: Path, record: CaseRecord, layout: Layout) -> None:
    """The checks of a label map; what is a warning there would draw a wrong picture here."""
    if not pred.is_file():
        raise DataError(f"{record.case}: the prediction {pred} is not there. Give --pred a NIfTI.")
    problems = check_cases([replace(record, label=str(pred))], layout)
    problems = [problem for problem in problems if problem.file == str(pred)]
    # A network that finds nothing is among what one wants to see.
    if problems := [problem for problem in problems if problem.kind != "empty-label"]:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(f"the prediction does not fit the case:\n{lines}")


def _output(output: str | os.PathLike[str] | None, case: str) -> Path:
    path = Path(output or ".").expanduser()
    path = path / f"{case}.png" if path.is_dir() else path
    if path.suffix[1:].lower() not in _KINDS:
        raise SettingsError(
            f"--output {path}: a picture's name must end in .png, .jpg, .pdf, .svg, .tif or .webp; "
            "a folder must be there already."
        )
    return path


def load_case(
    record: CaseRecord, layout: Layout, pred: str | os.PathLike[str] | None
) -> dict[str, torch.Tensor]:
    """A case's volumes in LPS.

    Args:
        record: the case.
        layout: of its data set.
        pred: a predicted label map in the data set's codes; ``None`` where there is none.

    Returns:
        ``image`` (4, D, H, W), and ``label`` and ``pred`` (3, D, H, W) as far as they are there.
    """
    files = {"image": record.as_case()["image"], "label": record.label}
    files["pred"] = None if pred is None else str(Path(pred).expanduser())
    files = {key: file for key, file in files.items() if file is not None}
    load = Compose(
        [
            LoadImaged(list(files), "NibabelReader", ensure_channel_first=True, image_only=True),
            ReorderChannelsd("image", layout.channel_order),
            LabelsToRegionsd(("label", "pred"), layout.codes, allow_missing_keys=True),
        ]
    )
    return {key: to_lps(volume) for key, volume in load(files).items()}
