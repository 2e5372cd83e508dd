"""The cases of a training and of the run that resumes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mod_components.data import (
    make_sample,
    prepare_evaluation,
    prepare_training,
    save_datalist,
)
from mod_components.errors import DataError, SettingsError
from tests.data.folders import write_case, write_cases, write_task01


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


def test_no_such_fold(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fold must be -1 \(own split\) or 0 to 4, got 7"):
        prepare_training(str(data), fold=7, ckpt_dir=str(tmp_path))


def test_unlabelled_cases_of_another_folder(data: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    write_case(more / "New", "New", codes=None)
    write_case(more / "Labelled", "Labelled")  # its label is not looked at
    write_case(more / "Bad_label", "Bad_label", codes=(7,))
    shutil.copytree(data / "Case_00", more / "Case_00")
    prepared = prepare_training(str(data), ckpt_dir=str(tmp_path / "m"), unlabelled_dir=str(more))
    assert ids(prepared.unlabelled) == {"New", "Labelled", "Bad_label"}
    assert all(set(case) == {"case", "image"} for case in prepared.unlabelled)
    assert len(prepared.training) + len(prepared.validation) == 10
    assert set(prepared.datalist["seen_unlabelled"]) == ids(prepared.unlabelled)
    assert prepare_training(str(data), ckpt_dir=str(tmp_path / "m")).unlabelled == []


def test_unlabelled_cases_of_the_folder_itself(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_case(data / "Bare", "Bare", codes=None)
    with caplog.at_level("INFO", "mod_components.data"):
        prepared = prepare_training(str(data), ckpt_dir=str(tmp_path / "m"))
    assert prepared.unlabelled == []
    assert "1 cases of" in caplog.text
    assert f"--unlabelled_dir {data}" in caplog.text
    prepared = prepare_training(str(data), ckpt_dir=str(tmp_path / "m"), unlabelled_dir=str(data))
    assert ids(prepared.unlabelled) == {"Bare"}


def test_a_resumed_run_keeps_its_unlabelled_cases(data: Path, tmp_path: Path) -> None:
    write_case(data / "Bare", "Bare", codes=None)
    models = tmp_path / "models"
    prepared = prepare_training(str(data), ckpt_dir=str(models), unlabelled_dir=str(data))
    save_datalist(prepared.datalist, models / "datalist.json")
    again = prepare_training(str(data), ckpt_dir=str(models), resume=True)
    assert again.unlabelled == prepared.unlabelled
    fresh = prepare_training(str(data), ckpt_dir=str(models))
    assert fresh.unlabelled == []


def test_unlabelled_cases_have_their_own_layout(data: Path, tmp_path: Path) -> None:
    task = write_task01(tmp_path / "Task01")
    prepared = prepare_training(str(data), ckpt_dir=str(tmp_path), unlabelled_dir=str(task))
    assert (prepared.layout.name, prepared.unlabelled_order) == ("brats", (2, 1, 3, 0))


def test_unlabelled_folders_that_give_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"each of its 10 cases trains or validates"):
        prepare_training(str(data), ckpt_dir=str(tmp_path), unlabelled_dir=str(data))
    folder = write_case(tmp_path / "u" / "Bad", "Bad", codes=None)
    (folder / "Bad_t2.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"Bad: .*Bad_t2.nii.gz: the file is empty"):
        prepare_training(str(data), ckpt_dir=str(tmp_path), unlabelled_dir=str(tmp_path / "u"))


def test_bad_cases_are_refused_or_left_out(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = prepare_training(str(data), ckpt_dir=str(tmp_path))
    (data / "Case_04" / "Case_04_flair.nii.gz").unlink()
    (data / "Case_07" / "Case_07_t1.nii.gz").write_bytes(b"garbage")
    refusal = r"(?s)Case_04.*no file for FLAIR.*Case_07.*--skip_bad_cases true"
    with pytest.raises(DataError, match=refusal):
        prepare_training(str(data), ckpt_dir=str(tmp_path))
    prepared = prepare_training(str(data), ckpt_dir=str(tmp_path), skip_bad_cases="true")
    left = ids(prepared.training) | ids(prepared.validation)
    assert left == {f"Case_{i:02d}" for i in range(10)} - {"Case_04", "Case_07"}
    assert "Case_04" in caplog.text
    assert "Case_07" in caplog.text
    # the others stay in their folds
    assert ids(prepared.validation) <= ids(before.validation)
    assert ids(prepared.training) <= ids(before.training)


def test_a_resumed_run_goes_on_without_what_it_left_out(data: Path, tmp_path: Path) -> None:
    broken = data / "Case_04" / "Case_04_flair.nii.gz"
    kept = broken.read_bytes()
    broken.write_bytes(b"")
    options = {"ckpt_dir": str(tmp_path / "models"), "skip_bad_cases": True}
    prepared = prepare_training(str(data), **options)
    assert prepared.datalist["left_out"] == ["Case_04"]
    save_datalist(prepared.datalist, tmp_path / "models" / "datalist.json")
    broken.write_bytes(kept)
    resumed = prepare_training(str(data), **options, resume=True)
    assert ids(resumed.training) == ids(prepared.training)
    assert resumed.datalist["left_out"] == ["Case_04"]
    assert len(prepare_training(str(data), **options).training) == 8


def test_cases_that_a_run_does_not_use_do_not_stop_it(data: Path, tmp_path: Path) -> None:
    names = [f"Case_{index:02d}" for index in range(9)]
    (data / "splits.json").write_text(json.dumps({"train": names[:7], "validation": names[7:]}))
    (data / "Case_09" / "Case_09_t2.nii.gz").unlink()
    assert len(prepare_training(str(data), ckpt_dir=str(tmp_path)).training) == 7


def test_a_resumed_run_with_other_scans_remembers_both(data: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("One", "Two"):
        write_case(tmp_path / name / name, name, codes=None)
    options = {"ckpt_dir": str(models), "resume": True}
    prepared = prepare_training(str(data), **options, unlabelled_dir=str(tmp_path / "One"))
    save_datalist(prepared.datalist, models / "datalist.json")
    again = prepare_training(str(data), **options, unlabelled_dir=str(tmp_path / "Two"))
    assert ids(again.unlabelled) == {"Two"}
    assert again.datalist["seen_unlabelled"] == ["One", "Two"]
    assert again.datalist["unlabelled_dir"] == str(tmp_path / "Two")
    assert prepare_training(str(data), **options, unlabelled_dir=None).unlabelled == []


def test_a_split_is_taken_over_without_what_its_run_saw(data: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "One" / "One", "One", codes=None)
    first = prepare_training(
        str(data), ckpt_dir=str(tmp_path / "a"), unlabelled_dir=str(tmp_path / "One")
    )
    save_datalist(first.datalist, tmp_path / "a" / "datalist.json")
    second = prepare_training(
        str(data), ckpt_dir=str(tmp_path / "b"), datalist=str(tmp_path / "a" / "datalist.json")
    )
    assert second.unlabelled == []
    assert not {"seen_unlabelled", "unlabelled_dir"} & set(second.datalist)
    assert ids(second.training) == ids(first.training)


def test_a_resumed_run_reads_labels_as_it_did(tmp_path: Path) -> None:
    write_task01(tmp_path / "task", [f"BRATS_{index:03d}" for index in range(5)])
    options = {"ckpt_dir": str(tmp_path / "models"), "fold": 0}
    first = prepare_training(str(tmp_path / "task"), legacy_et=True, **options)
    save_datalist(first.datalist, tmp_path / "models" / "datalist.json")
    with pytest.raises(DataError, match=r"codes of the label maps .* the --dataset_dir and --lega"):
        prepare_training(str(tmp_path / "task"), resume=True, **options)
    again = prepare_training(str(tmp_path / "task"), resume=True, legacy_et=True, **options)
    assert again.layout.codes == first.layout.codes


def test_a_run_notes_how_it_reads_labels_whatever_the_split_that_it_takes_says(
    tmp_path: Path,
) -> None:
    write_task01(tmp_path / "task", [f"BRATS_{index:03d}" for index in range(5)])
    root, own = str(tmp_path / "task"), {"ckpt_dir": str(tmp_path / "b"), "fold": 0}
    first = prepare_training(root, ckpt_dir=str(tmp_path / "a"), fold=0)
    save_datalist(first.datalist, tmp_path / "a.json")
    second = prepare_training(root, datalist=str(tmp_path / "a.json"), legacy_et=True, **own)
    assert second.datalist["codes"] == second.layout.codes != first.layout.codes
    save_datalist(second.datalist, tmp_path / "b" / "datalist.json")
    again = prepare_training(root, resume=True, legacy_et=True, **own)
    assert again.layout.codes == second.layout.codes
    with pytest.raises(DataError, match="codes of the label maps"):
        prepare_training(root, resume=True, **own)


def test_one_case_that_trains_and_validates_is_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_case(tmp_path / "one" / "A", "A")
    prepared = prepare_training(str(tmp_path / "one"), ckpt_dir=str(tmp_path))
    assert prepared.shares_cases
    assert "trains and validates: its Dice tells nothing" in caplog.text
    assert not prepare_training(str(data), ckpt_dir=str(tmp_path)).shares_cases


def test_a_written_split_holds_out_the_fold_that_it_was_written_for(
    data: Path, tmp_path: Path
) -> None:
    held_out = trained(data, tmp_path / "a", fold=3)
    options = {"ckpt_dir": str(tmp_path / "b"), "datalist": str(tmp_path / "a" / "datalist.json")}
    again = prepare_training(str(data), **options)
    assert ids(again.validation) == held_out
    assert again.datalist["fold"] == 3
    other = prepare_training(str(data), fold=1, **options)
    assert not ids(other.validation) & held_out
    assert other.datalist["fold"] == 1


def test_a_run_is_not_resumed_with_another_split(data: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "a", fold=1)
    own = str(tmp_path / "a" / "datalist.json")
    other = prepare_training(str(data), seed=7, ckpt_dir=str(tmp_path / "b"))
    save_datalist(other.datalist, tmp_path / "b" / "datalist.json")
    options = {"ckpt_dir": str(tmp_path / "a"), "resume": True}
    with pytest.raises(DataError, match="is another one: leave out --datalist"):
        prepare_training(str(data), **options, datalist=str(tmp_path / "b" / "datalist.json"))
    assert len(prepare_training(str(data), **options, datalist=own).validation) == 2


def test_a_folder_of_scans_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--unlabelled_dir: Data folder .* does not exist"):
        prepare_training(str(data), ckpt_dir=str(tmp_path), unlabelled_dir=str(tmp_path / "no"))


def test_a_resumed_run_keeps_its_own_record_though_a_datalist_is_given(
    data: Path, tmp_path: Path
) -> None:
    """The command of the training again, with --resume true."""
    write_case(tmp_path / "One" / "One", "One", codes=None)
    first = prepare_training(
        str(data), ckpt_dir=str(tmp_path / "a"), unlabelled_dir=str(tmp_path / "One")
    )
    save_datalist(first.datalist, tmp_path / "a" / "datalist.json")
    options = {
        "datalist": str(tmp_path / "a" / "datalist.json"),
        "ckpt_dir": str(tmp_path / "b"),
        "skip_bad_cases": True,
    }
    broken = data / "Case_04" / "Case_04_t1.nii.gz"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    second = prepare_training(str(data), **options)
    save_datalist(second.datalist, tmp_path / "b" / "datalist.json")
    broken.write_bytes(content)
    resumed = prepare_training(str(data), **options, resume=True)
    assert resumed.unlabelled == []
    assert resumed.datalist["left_out"] == ["Case_04"]
    assert ids(resumed.training) == ids(second.training)


def test_a_resumed_run_goes_on_with_the_scans_that_it_began_with(
    data: Path, tmp_path: Path
) -> None:
    models, scans = tmp_path / "models", tmp_path / "scans"
    for name in ("One", "Two"):
        write_case(scans / name, name, codes=None)
    options = {"ckpt_dir": str(models), "unlabelled_dir": str(scans)}
    save_datalist(prepare_training(str(data), **options).datalist, models / "datalist.json")
    write_case(scans / "Three", "Three", codes=None)
    resumed = prepare_training(str(data), **options, resume=True)
    assert ids(resumed.unlabelled) == {"One", "Two"}


def test_files_are_taken_where_they_lie_now(data: Path, tmp_path: Path) -> None:
    """And a label map that is gone is told before a training begins."""
    save_datalist(prepare_training(str(data), ckpt_dir="x").datalist, tmp_path / "list.json")
    options = {"ckpt_dir": str(tmp_path), "datalist": str(tmp_path / "list.json")}
    moved = data / "HGG" / "Case_03"
    moved.parent.mkdir()
    (data / "Case_03").rename(moved)
    prepared = prepare_training(str(data), **options)
    case = next(c for c in prepared.training + prepared.validation if c["case"] == "Case_03")
    assert Path(case["label"]).parent == moved
    assert all(Path(path).is_file() for path in [*case["image"], case["label"]])
    (moved / "Case_03_seg.nii.gz").unlink()
    with pytest.raises(DataError, match="no label map of Case_03 any more"):
        prepare_training(str(data), **options)
    left = prepare_training(str(data), **options, skip_bad_cases=True)
    assert "Case_03" not in ids(left.training) | ids(left.validation)
