"""Nothing of the machine or of patients is left in what a bundle holds."""

from __future__ import annotations

import pytest

from mod_components.release.privacy import (
    cleaned,
    datalist_without_paths,
    without_case_ids,
    without_paths,
)


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("../../ann/runs/fold_0", "fold_0"),
        (r"..\..\ann\x", "x"),
        ("$HOME/ann/x", "x"),
        (r"%USERPROFILE%\ann\x", "x"),
        (r"D:data\ann\x", "x"),
        ("D:x", "x"),
        ("~ann", ""),
        ("~ann/x", "x"),
        ("/home/ann doe/O'Brien/model.pt", "model.pt"),
        ("/Ann, raw/ann/train", "train"),
        ("/home/ann/x/", "x"),
        ("--dataset_dir=/home/ann doe/BraTS 2021", "--dataset_dir=BraTS 2021"),
        ('--dataset_dir="/home/ann doe/x"', "--dataset_dir=x"),
        ("['/home/ann/a.json', 'b/ann/c.json']", "['a.json', 'c.json']"),
        ("[/home/ann/a.json,/home/ann/b.json]", "b.json"),
        ("--x={'a': '/home/ann/x'}", "--x={'a': 'x'}"),
        ("file:///home/ann b/x", "x"),
        ("s3://bucket/ann/x", "x"),
        (r"\\server\ann share\x", "x"),
        ("//nas/ann/my data", "my data"),
    ],
)
def test_of_a_path_the_last_part_is_left(word: str, left: str) -> None:
    assert without_paths(word) == left
    assert without_paths({"a": [word]}) == {"a": [left]}


@pytest.mark.parametrize(
    "word",
    [
        *(
            "--epochs",
            "3",
            "--roi_size=[64, 64, 64]",
            "[64,64,64]",
            "2.13.0+cpu",
            "embedded sample",
        ),
        *("--network_def#_target_=UNETR", "swinViT.layers3.0", "--tap=a.b", "BraTS 2021", "x: y"),
    ],
)
def test_what_is_no_path_stays(word: str) -> None:
    assert without_paths(word) == word
    assert without_paths(7.5) == 7.5


def test_the_script_of_the_command_goes() -> None:
    settings = {"dataset_dir": "x"}
    for script in ("/opt/ann/monai/bundle/__main__.py", r"C:\ann\monai.exe", "train.py"):
        content = cleaned({"settings": settings, "command": [script, "run"]}, "p")
        assert content["command"] == ["run"]
    assert cleaned({"settings": settings, "command": ["run"]}, "p")["command"] == ["run"]
    assert "metrics" not in content


def test_a_datalist_keeps_the_paths_inside_the_data_set() -> None:
    case = {"case": "BraTS_1", "image": ["a b/1.nii.gz", "2.nii.gz"], "label": None, "fold": 0}
    content = {"dataset_dir": "/home/ann/x", "seed": 1, "training": [case], "notes": ["b/c"]}
    assert datalist_without_paths(content) == {**content, "dataset_dir": "x", "notes": ["c"]}
    outside = {"case": "1", "image": "../ann/1.nii.gz", "label": "/home/ann/2.nii.gz"}
    assert datalist_without_paths({"unlabelled": [outside]}) == {
        "unlabelled": [{"case": "1", "image": "1.nii.gz", "label": "2.nii.gz"}]
    }


def test_ids_of_a_datalist_stay_what_they_are() -> None:
    """By them an evaluation knows what was trained on."""
    cases = [
        {"case": name, "image": f"{name}/{name}.nii.gz", "label": None, "fold": 0}
        for name in ("P~1", "P~2")
    ]
    content = {"training": cases, "seen_unlabelled": ["P~3", "x~"], "left_out": ["P~4"]}
    assert datalist_without_paths(content) == content


def test_a_bundle_that_is_packed_again_knows_on_how_many_cases_thresholds_were_chosen() -> None:
    content = {"chosen_on": {"single": {"cases": ["A", "B"]}}}
    once = without_case_ids(content)
    assert once == {"chosen_on": {"single": {"cases": [], "number_of_cases": 2}}}
    assert without_case_ids(once) == once


@pytest.mark.parametrize("chosen", [[], {"single": []}, {"single": {"cases": 3}}])
def test_thresholds_without_lists_of_cases(chosen: object) -> None:
    with pytest.raises(ValueError, match="names no lists of cases"):
        without_case_ids({"chosen_on": chosen})
