"""Pictures of cases on disk: how they are found, what is drawn, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mod_components.errors import DataError, SettingsError
from mod_components.evaluation import view
from mod_components.evaluation.view import view_case
from tests.data.folders import (
    NEW,
    SHAPE,
    label_map,
    write_case,
    write_cases,
    write_task01,
    write_volume,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Figure]]:
    """What is given to ``draw_case``, and its figures."""
    calls: list[tuple[dict[str, Any], Figure]] = []
    real = view.draw_case

    def spy(image: torch.Tensor, pred: Any, label: Any, **settings: Any) -> Figure:
        figure = real(image, pred, label, **settings)
        calls.append(({"image": image, "pred": pred, "label": label}, figure))
        return figure

    monkeypatch.setattr(view, "draw_case", spy)
    return calls


def test_a_cases_folder(tmp_path: Path, drawn: list, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cases(tmp_path / "set", 2)
    monkeypatch.chdir(tmp_path)
    path = view_case(tmp_path / "set" / "Case_01")
    assert path == Path("Case_01.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    ((volumes, figure),) = drawn
    assert figure.get_suptitle() == "Case_01"
    assert [axes.get_title() for axes in figure.axes[:4]] == ["FLAIR", "T1ce", "T1", "T2"]
    assert volumes["pred"] is None
    # stored as RAS, with 1 to 4 as voxels of T1ce, T1, T2 and FLAIR
    assert [float(channel.max()) for channel in volumes["image"]] == [1, 2, 3, 4]
    assert np.array_equal(volumes["label"][1].numpy(), (label_map() > 0)[::-1, ::-1])


def test_a_case_of_a_data_set(tmp_path: Path, drawn: list) -> None:
    write_cases(tmp_path / "set", 3)
    path = view_case("Case_02", dataset_dir=tmp_path / "set", output=tmp_path)
    assert path == tmp_path / "Case_02.png"
    path = view_case("Case_00", dataset_dir=str(tmp_path / "set"), output=tmp_path / "new/a.jpg")
    assert path.read_bytes().startswith(b"\xff\xd8")
    assert [figure.get_suptitle() for _, figure in drawn] == ["Case_02", "Case_00"]


def test_a_prediction_is_scored(tmp_path: Path, drawn: list) -> None:
    folder = write_case(tmp_path / "B", "B", suffixes=NEW, separator="-", codes=(1, 2, 3))
    guess = label_map((1, 2, 3))
    guess[guess == 3] = 2  # no enhancing tumour
    write_volume(tmp_path / "guess.nii.gz", guess)
    view_case(folder, pred=tmp_path / "guess.nii.gz", output=tmp_path)
    ((volumes, figure),) = drawn
    assert np.array_equal(volumes["pred"][0].numpy(), (guess == 1)[::-1, ::-1])
    core = (label_map((1, 2, 3)) == 1).sum()
    enhancing = (label_map((1, 2, 3)) == 3).sum()
    dice_of_core = 2 * core / (core + core + enhancing)
    text = figure.get_suptitle().splitlines()
    assert text[1] == f"Dice   WT 1.000   TC {dice_of_core:.3f}   ET 0.000"
    assert re.fullmatch(r"HD95 \(mm\)   WT 0.0   TC \d+\.\d   ET 373.1", text[2])


def test_a_prediction_of_nothing_is_drawn(tmp_path: Path, drawn: list) -> None:
    folder = write_case(tmp_path / "A", "A")
    write_volume(tmp_path / "guess.nii.gz", label_map() * 0)
    view_case(folder, pred=tmp_path / "guess.nii.gz", output=tmp_path)
    ((volumes, figure),) = drawn
    assert not volumes["pred"].any()
    assert "Dice   WT 0.000   TC 0.000   ET 0.000" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("png", b"\x89PNG"),
        ("jpg", b"\xff\xd8\xff"),
        ("JPEG", b"\xff\xd8\xff"),
        ("pdf", b"%PDF"),
        ("svg", b"<?xml"),
        ("tif", b"II*"),
        ("webp", b"RIFF"),
    ],
)
def test_kinds_of_pictures(tmp_path: Path, kind: str, start: bytes) -> None:
    folder = write_case(tmp_path / "A", "A")
    path = view_case(folder, output=tmp_path / f"x.{kind}")
    assert path.read_bytes().startswith(start)


def test_an_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_case(tmp_path / "A", "A")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"--output .*file/x.png: can't be written \(.*: .*\)"):
        view_case(folder, output=tmp_path / "file" / "x.png")
    # a name that can't be right is told before anything is read
    monkeypatch.setattr(view, "refuse_bad_cases", lambda *_: pytest.fail("it has read the case"))
    for name in ("a.bmp", "a.pgf", "nowhere/"):
        with pytest.raises(SettingsError, match=r"--output .*must end in .png, .* a folder must"):
            view_case(folder, output=str(tmp_path / name))


def test_a_case_without_a_label_map(tmp_path: Path, drawn: list) -> None:
    folder = write_case(tmp_path / "A", "A", codes=None)
    write_volume(tmp_path / "guess.nii.gz", label_map())
    view_case(folder, output=tmp_path / "without.png")
    view_case(folder, pred=tmp_path / "guess.nii.gz", output=tmp_path / "with.png")
    (without, figure), (with_pred, _) = drawn
    assert without["label"] is None
    assert without["pred"] is None
    assert figure.legends == []
    assert with_pred["pred"].any()


def test_decathlon(tmp_path: Path, drawn: list) -> None:
    root = write_task01(tmp_path / "Task01", ("BRATS_001",))
    view_case(root, output=tmp_path)  # its only case
    view_case("BRATS_001", dataset_dir=root, output=tmp_path, legacy_et=True)
    (volumes, _), (legacy, _) = drawn
    # FLAIR, T1, T1ce, T2 on disk hold 1 to 4
    assert [float(channel.max()) for channel in volumes["image"]] == [3, 2, 4, 1]
    stored = label_map((1, 2, 3))[::-1, ::-1]
    assert np.array_equal(volumes["label"][2].numpy(), stored == 3)
    assert np.array_equal(legacy["label"][2].numpy(), stored == 2)


SHIFTED = np.eye(4)
SHIFTED[0, 3] = 0.5


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (label_map((1, 2, 3)), np.eye(4), "label code 3 is not one of .* write 4 for 3"),
        (np.zeros((6, 5, 3), np.uint8), np.eye(4), r"shape \(6, 5, 3\), but .* one grid"),
        (label_map(), SHIFTED, "affine differs .* by up to 0.5 mm"),
        (label_map(), np.diag([-1.0, 1, 1, 1]), "in the orientation of the scan"),
        (np.zeros((*SHAPE, 3), np.uint8), np.eye(4), "expected a 3D volume"),
    ],
)
def test_a_prediction_that_does_not_fit(
    tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, message: str
) -> None:
    folder = write_case(tmp_path / "A", "A")
    write_volume(tmp_path / "guess.nii.gz", voxels, affine)
    with pytest.raises(DataError, match=rf"(?s)A: .*guess.nii.gz: .*{message}"):
        view_case(folder, pred=tmp_path / "guess.nii.gz", output=tmp_path)
    assert not (tmp_path / "A.png").exists()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    names = write_cases(tmp_path / "set", 7)
    with pytest.raises(DataError, match=r"holds 7 cases. .* Case_00 --dataset_dir"):
        view_case(tmp_path / "set")
    with pytest.raises(DataError, match=r"has no case Case_9. .* its 7: Case_00, .*Case_04 …"):
        view_case("Case_9", dataset_dir=tmp_path / "set")
    with pytest.raises(DataError, match=r"Case_00 is not a folder. .*--dataset_dir DIR"):
        view_case("Case_00")
    with pytest.raises(DataError, match=r"Case_00: the prediction .*none.nii is not there"):
        view_case(tmp_path / "set" / names[0], pred=tmp_path / "none.nii")
    with pytest.raises(SettingsError, match=r"a.bmp: a picture's name must end in .png"):
        view_case(tmp_path / "set" / names[0], output=tmp_path / "a.bmp")
    (tmp_path / "set" / "Case_01" / "Case_01_t1.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"Case_01_t1.nii.gz: the file is empty"):
        view_case(tmp_path / "set" / "Case_01", output=tmp_path)


@pytest.mark.real_data
def test_a_real_case_agrees_with_itself(real_data: Path, tmp_path: Path, drawn: list) -> None:
    folder = real_data / "brats2018_2mm" / "Brats18_2013_2_1"
    path = view_case(folder, pred=next(folder.glob("*seg.nii.gz")), output=tmp_path)
    assert path.stat().st_size > 50_000
    ((volumes, figure),) = drawn
    assert "Dice   WT 1.000   TC 1.000   ET 1.000" in figure.get_suptitle()
    assert volumes["image"].shape == (4, 120, 120, 77)
