"""The cases of a training, of the run that resumes it, and of its evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mod_components.data import (
    case_name,
    make_sample,
    prepare_evaluation,
    prepare_training,
    save_datalist,
)
from mod_components.errors import DataError, SettingsError
from tests.data.folders import write_cases


def ids(cases: list[dict[str, object]]) -> set[str]:
    return {str(case["case"]) for case in cases}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data", 10)
    return tmp_path / "data"


def trained(data: Path, models: Path, fold: int) -> set[str]:
    """What a training leaves beside its checkpoint; returns its held-out cases."""
    prepared = prepare_training(str(data), fold=fold, ckpt_dir=str(models))
    save_datalist(prepared.datalist, models / "datalist.json")
    return ids(prepared.validation)


def test_a_training_writes_nothing_by_itself(data: Path, tmp_path: Path) -> None:
    prepared = prepare_training(str(data), fold=2, ckpt_dir=str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()
    assert (prepared.name, prepared.datalist["fold"]) == ("data", 2)
    assert len(prepared.training) == 8
    assert len(prepared.validation) == 2


def test_evaluation_takes_the_held_out_cases_of_the_training(data: Path, tmp_path: Path) -> None:
    held_out = trained(data, tmp_path / "models", fold=3)
    checkpoint = str(tmp_path / "models" / "model.pt")
    assert ids(prepare_evaluation(checkpoint=checkpoint).validation) == held_out
    assert ids(prepare_evaluation(str(data), checkpoint=checkpoint).validation) == held_out
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(data, moved)
    prepared = prepare_evaluation(str(moved), checkpoint=checkpoint)
    assert ids(prepared.validation) == held_out
    assert all(str(case["label"]).startswith(str(moved)) for case in prepared.validation)
    other = prepare_evaluation(str(data), fold=0, checkpoint=checkpoint)
    assert not ids(other.validation) & held_out


def test_evaluation_takes_all_cases_of_another_data_set(data: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "models", fold=0)
    checkpoint = str(tmp_path / "models" / "model.pt")
    for path in (data / "Case_00").iterdir():
        (tmp_path / "new" / "Other").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "new" / "Other" / path.name.replace("Case_00", "Other"))
    prepared = prepare_evaluation(str(tmp_path / "new"), checkpoint=checkpoint)
    assert ids(prepared.validation) == {"Other"}
    with pytest.raises(DataError, match="does not split the cases"):
        prepare_evaluation(str(tmp_path / "new"), fold=1, checkpoint=checkpoint)


def test_a_resumed_run_keeps_its_split(data: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    held_out = trained(data, models, fold=1)
    write_cases(data, 12)  # new cases would make another split
    again = prepare_training(str(data), ckpt_dir=str(models), resume="true")
    assert ids(again.validation) == held_out
    assert len(again.training) == 8
    with pytest.raises(DataError, match=r"holds out fold 1 .* not 2"):
        prepare_training(str(data), fold=2, ckpt_dir=str(models), resume=True)
    with pytest.raises(DataError, match=f"splits {data}: give --dataset_dir that folder too"):
        prepare_training(ckpt_dir=str(models), resume=True)
    shutil.rmtree(data / "Case_04")
    with pytest.raises(DataError, match="lacks cases of the datalist: Case_04"):
        prepare_training(str(data), ckpt_dir=str(models), resume=True)


def test_sample_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOD_CACHE", str(tmp_path))
    small = make_sample(tmp_path / "small", cases=4)
    monkeypatch.setattr("mod_components.data.prepare.make_sample", lambda: small)
    prepared = prepare_training(ckpt_dir=str(tmp_path / "models"))
    assert (prepared.name, len(prepared.training)) == ("embedded sample", 3)
    save_datalist(prepared.datalist, tmp_path / "models" / "datalist.json")
    resumed = prepare_training(ckpt_dir=str(tmp_path / "models"), resume=True)
    assert ids(resumed.validation) == ids(prepared.validation)
    evaluated = prepare_evaluation(checkpoint=str(tmp_path / "models" / "model.pt"))
    assert ids(evaluated.validation) == ids(prepared.validation)
    assert 0 < evaluated.notes["its mean WT Dice on these cases"] < 1


def test_home_is_expanded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared = prepare_training("~/data", ckpt_dir=str(tmp_path / "models"))
    assert prepared.datalist["dataset_dir"] == str(data)


def test_a_label_is_never_replaced_by_a_prediction(data: Path, tmp_path: Path) -> None:
    folder = data / "Case_03"
    with pytest.raises(DataError, match=r"is the folder of .*Case_03_seg.nii.gz"):
        prepare_evaluation(
            str(folder), checkpoint=str(tmp_path / "model.pt"), output_dir=str(folder)
        )


def test_no_such_fold(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fold must be -1 \(own split\) or 0 to 4, got 7"):
        prepare_training(str(data), fold=7, ckpt_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/a/BraTS2021_00495_t1ce.nii.gz", "BraTS2021_00495"),
        ("/a/BraTS-GLI-00000-000-t1c.nii.gz", "BraTS-GLI-00000-000"),
        ("/a/BRATS_001.nii.gz", "BRATS_001"),
        ("/a/x_T1CE.nii", "x"),
    ],
)
def test_case_name(file: str, name: str) -> None:
    assert case_name({"filename_or_obj": file}, None) == {"subject": name, "idx": None}
