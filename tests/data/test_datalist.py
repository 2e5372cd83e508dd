"""Datalists: the same split everywhere, no case lost, none in both halves."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from mod_components.data import DataError, load_datalist, make_datalist, save_datalist, select
from tests.data.folders import write_case, write_cases, write_task01


def ids(entries: list[dict[str, object]]) -> list[object]:
    return [entry["case"] for entry in entries]


def write_splits(root: Path, **splits: object) -> None:
    (root / "splits.json").write_text(json.dumps(splits))


def test_the_split_is_fixed(tmp_path: Path) -> None:
    write_cases(tmp_path, 10)
    datalist = make_datalist(tmp_path)
    folds = [
        [entry["case"] for entry in datalist["training"] if entry["fold"] == k] for k in range(5)
    ]
    assert folds == [
        ["Case_01", "Case_08"],
        ["Case_00", "Case_09"],
        ["Case_05", "Case_07"],
        ["Case_03", "Case_04"],
        ["Case_02", "Case_06"],
    ]
    assert make_datalist(tmp_path) == datalist
    other = make_datalist(tmp_path, seed=7)["training"]
    assert [entry["fold"] for entry in other] != [e["fold"] for e in datalist["training"]]


def test_content(tmp_path: Path) -> None:
    write_cases(tmp_path, 5)
    write_case(tmp_path / "Unread", "Unread", codes=None)
    datalist = make_datalist(tmp_path, seed=3, folds=3)
    training = datalist.pop("training")
    assert datalist == {
        "dataset_dir": str(tmp_path),
        "layout": "brats",
        "channel_order": [0, 1, 2, 3],
        "codes": {"necrosis": 1, "oedema": 2, "enhancing": 4},
        "seed": 3,
        "folds": 3,
        "validation": [],
        "unlabelled": [
            {
                "case": "Unread",
                "image": [f"Unread/Unread_{s}.nii.gz" for s in ("t1ce", "t1", "t2", "flair")],
                "label": None,
            }
        ],
    }
    assert training[1]["case"] == "Case_01"
    assert training[1]["label"] == "Case_01/Case_01_seg.nii.gz"
    assert sorted(entry["fold"] for entry in training) == [0, 0, 1, 1, 2]


def test_folds_partition_the_cases(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 13)
    datalist = make_datalist(tmp_path)
    held_out: list[object] = []
    for fold in range(5):
        train, validation = select(datalist, fold)
        assert sorted([*ids(train), *ids(validation)]) == cases
        held_out += ids(validation)
    assert sorted(held_out) == cases
    assert select(datalist) == select(datalist, 0)
    assert len(select(datalist)[1]) == 3


def test_paths_move_with_the_data(tmp_path: Path) -> None:
    write_cases(tmp_path / "here", 5)
    datalist = make_datalist(tmp_path / "here")
    train, _ = select(datalist)
    assert all(
        Path(path).is_file() for entry in train for path in (*entry["image"], entry["label"])
    )
    assert set(train[0]) == {"case", "image", "label"}
    shutil.move(tmp_path / "here", tmp_path / "there")
    train, _ = select(datalist, dataset_dir=tmp_path / "there")
    assert all(
        Path(path).is_file() for entry in train for path in (*entry["image"], entry["label"])
    )


def test_decathlon(tmp_path: Path) -> None:
    write_task01(tmp_path, ("BRATS_001", "BRATS_002"))
    datalist = make_datalist(tmp_path, legacy_et=True)
    assert datalist["codes"] == {"necrosis": 3, "oedema": 1, "enhancing": 2}
    assert datalist["channel_order"] == [2, 1, 3, 0]
    assert datalist["training"][0]["image"] == "imagesTr/BRATS_001.nii.gz"
    (entry,), _ = select(datalist)
    assert Path(entry["image"]).is_file()


@pytest.mark.parametrize(("number", "folds"), [(2, 2), (3, 3), (4, 4), (5, 5)])
def test_few_cases(tmp_path: Path, number: int, folds: int) -> None:
    write_cases(tmp_path, number)
    datalist = make_datalist(tmp_path)
    assert datalist["folds"] == folds
    for fold in range(-1, folds):
        train, validation = select(datalist, fold)
        assert (len(train), len(validation)) == (number - 1, 1)


def test_one_case_trains_and_validates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cases(tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        train, validation = select(make_datalist(tmp_path))
    assert ids(train) == ids(validation) == ["Case_00"]
    assert "one labelled case" in caplog.text


def test_no_such_fold(tmp_path: Path) -> None:
    write_cases(tmp_path, 3)
    datalist = make_datalist(tmp_path)
    for fold in (3, -2):
        with pytest.raises(ValueError, match=f"0 to 2, got {fold}"):
            select(datalist, fold)
    with pytest.raises(ValueError, match="at least 2"):
        make_datalist(tmp_path, folds=1)


def test_own_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = write_cases(tmp_path, 9)
    write_splits(tmp_path, train=cases[:6], validation=cases[6:8])
    with caplog.at_level(logging.INFO):
        datalist = make_datalist(tmp_path)
    assert "not used: Case_08" in caplog.text
    train, validation = select(datalist)
    assert (ids(train), ids(validation)) == (cases[:6], cases[6:8])
    for fold in range(5):
        train, validation = select(datalist, fold)
        assert sorted([*ids(train), *ids(validation)]) == cases[:6]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["Case_00", "Nobody", "Noone"]}, "not in the folder: Nobody, Noone"),
        ({"train": ["Case_00"], "validation": ["Case_00"]}, "in both lists: Case_00"),
        ({"train": ["Case_00", "Unread"]}, "without a label: Unread"),
        ({"train": [], "validation": ["Case_00"]}, "no training case"),
        ({"train": "Case_00"}, "no lists of case ids"),
        ({}, "no lists of case ids"),
    ],
)
def test_unfit_splits(tmp_path: Path, splits: dict[str, object], message: str) -> None:
    write_cases(tmp_path, 2)
    write_case(tmp_path / "Unread", "Unread", codes=None)
    write_splits(tmp_path, **splits)
    with pytest.raises(DataError, match=rf"splits\.json.*{message}"):
        make_datalist(tmp_path)


def test_broken_splits_file(tmp_path: Path) -> None:
    write_cases(tmp_path, 2)
    (tmp_path / "splits.json").write_text("{")
    with pytest.raises(DataError, match=r"splits\.json can't be read as JSON"):
        make_datalist(tmp_path)


def test_incomplete_and_unlabelled_cases(tmp_path: Path) -> None:
    write_case(tmp_path / "Unread", "Unread", codes=None)
    with pytest.raises(DataError, match=r"None of the 1 cases .* has a label map"):
        make_datalist(tmp_path)
    write_cases(tmp_path, 2)
    (tmp_path / "Case_01" / "Case_01_t2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"Case_01 lacks T2 \(.*Case_01\)"):
        make_datalist(tmp_path)


def test_save_and_load(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 3)
    datalist = make_datalist(tmp_path / "data")
    path = tmp_path / "new" / "datalist.json"
    save_datalist(datalist, path)
    assert load_datalist(path) == datalist
    assert path.read_text().startswith('{\n    "dataset_dir"')
    assert os.listdir(path.parent) == ["datalist.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    path.write_text("old")
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="Circular reference"):
        save_datalist({"training": endless}, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["datalist.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "can't be read as JSON"),
        ("[]", "holds a list"),
        ('{"training": []}', "not a datalist: dataset_dir, layout"),
        (None, "can't be read"),
    ],
)
def test_load_what_is_no_datalist(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "datalist.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"datalist\.json.*{message}"):
        load_datalist(path)
