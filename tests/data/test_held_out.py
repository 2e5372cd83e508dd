"""The cases that a trained network, or several together, may be judged on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from mod_components.data import case_name, prepare_evaluation, prepare_training, save_datalist
from mod_components.errors import DataError, SettingsError
from tests.data.folders import write_case, write_cases
from tests.data.test_prepare import ids, trained


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data", 10)
    return tmp_path / "data"


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


def test_another_data_set_whose_cases_have_ids_of_the_training(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = trained(data, tmp_path / "models", fold=0)
    checkpoint = str(tmp_path / "models" / "model.pt")
    seen = min({f"Case_{index:02d}" for index in range(10)} - held_out)
    for case in (min(held_out), seen, "Other"):
        write_case(tmp_path / "new" / case, case)
    new = str(tmp_path / "new")
    assert ids(prepare_evaluation(new, checkpoint=checkpoint).validation) == {min(held_out)}
    assert "has 1 labelled cases that" in caplog.text
    assert "not evaluated: Other. If it is another data set, give --all_cases true" in caplog.text
    every = prepare_evaluation(new, checkpoint=checkpoint, all_cases="true")
    assert ids(every.validation) == {min(held_out), seen, "Other"}
    both = prepare_evaluation(new, checkpoint=[checkpoint] * 2, all_cases=True)
    assert ids(both.validation) == {min(held_out), seen, "Other"}
    shutil.rmtree(tmp_path / "new" / min(held_out))
    with pytest.raises(DataError, match=r"other patients .* the same ids, give --all_cases true"):
        prepare_evaluation(new, checkpoint=checkpoint)
    with pytest.raises(SettingsError, match="--all_cases takes all: leave out --fold"):
        prepare_evaluation(new, checkpoint=checkpoint, fold=1, all_cases=True)


def test_a_label_is_never_replaced_by_a_prediction(data: Path, tmp_path: Path) -> None:
    folder = data / "Case_03"
    with pytest.raises(DataError, match=r"is the folder of .*Case_03_seg.nii.gz"):
        prepare_evaluation(
            str(folder), checkpoint=str(tmp_path / "model.pt"), output_dir=str(folder)
        )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/a/BraTS2021_00495_t1ce.nii.gz", "BraTS2021_00495"),
        ("/a/BraTS-GLI-00000-000-t1c.nii.gz", "BraTS-GLI-00000-000"),
        ("/a/BRATS_001.nii.gz", "BRATS_001"),
        ("/a/x_T1CE.nii", "x"),
        ("/a/1.2.840.1_t1ce.nii.gz", "1.2.840.1"),
        ("/a/P01_2019.03.nii", "P01_2019.03"),
    ],
)
def test_case_name(file: str, name: str) -> None:
    assert case_name({"filename_or_obj": file}, None) == {"subject": f"{name}.nii.gz", "idx": None}


def test_ids_with_dots_have_a_label_map_each(tmp_path: Path) -> None:
    save = SaveImage(
        tmp_path, "seg", output_name_formatter=case_name, separate_folder=False, print_log=False
    )
    for case in ("1.2.840.1", "1.2.840.2", "P.001"):
        meta = {"filename_or_obj": f"/data/{case}_t1ce.nii.gz"}
        save(MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"1.2.840.1_seg.nii.gz", "1.2.840.2_seg.nii.gz", "P.001_seg.nii.gz"}


def checkpoints(data: Path, root: Path, folds: tuple[int, ...]) -> list[str]:
    for fold in folds:
        trained(data, root / f"fold_{fold}" / "models", fold)
    return [str(root / f"fold_{fold}" / "models" / "model.pt") for fold in folds]


def test_folds_together_are_judged_on_the_fixed_validation_cases(
    data: Path, tmp_path: Path
) -> None:
    names = [f"Case_{index:02d}" for index in range(10)]
    (data / "splits.json").write_text(json.dumps({"train": names[:8], "validation": names[8:]}))
    folds = checkpoints(data, tmp_path, (0, 1, 2, 3, 4))
    assert ids(prepare_evaluation(checkpoint=folds).validation) == {"Case_08", "Case_09"}
    pattern = str(tmp_path / "fold_*" / "models" / "model.pt")
    for path in folds:
        Path(path).touch()
    assert ids(prepare_evaluation(checkpoint=pattern).validation) == {"Case_08", "Case_09"}


def test_folds_together_have_seen_every_case_where_none_is_fixed(
    data: Path, tmp_path: Path
) -> None:
    folds = checkpoints(data, tmp_path, (0, 1))
    with pytest.raises(DataError, match=r"each labelled case .* trained one of the 2 checkpoints"):
        prepare_evaluation(checkpoint=folds)
    with pytest.raises(SettingsError, match="leave out --fold"):
        prepare_evaluation(checkpoint=folds, fold=0)
    write_case(tmp_path / "other" / "Other", "Other")
    prepared = prepare_evaluation(str(tmp_path / "other"), checkpoint=folds)
    assert ids(prepared.validation) == {"Other"}


def test_backbones_of_one_fold_are_judged_on_it(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = trained(data, tmp_path / "a", 3)
    assert trained(data, tmp_path / "b", 3) == held_out
    both = [str(tmp_path / name / "model.pt") for name in "ab"]
    assert ids(prepare_evaluation(checkpoint=both).validation) == held_out
    (tmp_path / "b" / "datalist.json").unlink()
    assert ids(prepare_evaluation(checkpoint=both).validation) == held_out
    assert "is not known" in caplog.text


def test_scans_that_mod_saw_without_labels_are_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_case(tmp_path / "new" / "New", "New")
    prepared = prepare_training(
        str(data), ckpt_dir=str(tmp_path), unlabelled_dir=str(tmp_path / "new")
    )
    save_datalist(prepared.datalist, tmp_path / "datalist.json")
    prepare_evaluation(str(tmp_path / "new"), checkpoint=str(tmp_path / "model.pt"))
    assert "saw the scans (not the labels) of 1 of these cases in training: New" in caplog.text


def test_no_training_case_is_judged_when_some_cases_are_gone(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = trained(data, tmp_path / "models", fold=2)
    checkpoint = str(tmp_path / "models" / "model.pt")
    lost, kept = sorted(held_out)
    shutil.rmtree(data / lost)
    assert ids(prepare_evaluation(str(data), checkpoint=checkpoint).validation) == {kept}
    assert f"lacks 1 held-out cases: {lost}" in caplog.text
    training = next(path for path in data.iterdir() if path.name not in held_out)
    with pytest.raises(DataError, match="trained on and none that it was not"):
        prepare_evaluation(str(training), checkpoint=checkpoint)
    shutil.rmtree(training)
    assert ids(prepare_evaluation(str(data), checkpoint=checkpoint).validation) == {kept}


def test_no_training_case_is_judged_by_folds_when_some_cases_are_gone(
    data: Path, tmp_path: Path
) -> None:
    names = [f"Case_{index:02d}" for index in range(10)]
    (data / "splits.json").write_text(json.dumps({"train": names[:8], "validation": names[8:]}))
    folds = checkpoints(data, tmp_path, (0, 1, 2))
    (data / "splits.json").unlink()
    shutil.rmtree(data / "Case_00")
    prepared = prepare_evaluation(str(data), checkpoint=folds)
    assert ids(prepared.validation) == {"Case_08", "Case_09"}


def test_judging_what_was_trained_on_is_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(data, tmp_path / "models", fold=2)
    prepare_evaluation(str(data), fold=1, checkpoint=str(tmp_path / "models" / "model.pt"))
    assert "the network was trained on 2 of these cases" in caplog.text
