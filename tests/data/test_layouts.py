"""Layouts: every kind of folder is recognised, and what is not is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged

from mod_components.data import (
    CHANNELS,
    DataError,
    LabelsToRegionsd,
    ReorderChannelsd,
    find_cases,
    find_layout,
    scan,
)
from mod_components.data.decathlon import lone_labels
from mod_components.data.records import FolderError
from tests.data.checks.spoil import forbid
from tests.data.folders import NEW, OLD, TASK01, write_case, write_task01


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def test_old_brats_with_grades(tmp_path: Path) -> None:
    for grade, case in (("LGG", "Brats18_B_1"), ("HGG", "Brats18_C_1"), ("HGG", "Brats18_A_1")):
        write_case(tmp_path / grade / case, case)
    layout = find_layout(tmp_path)
    assert (layout.name, layout.channel_order) == ("brats", (0, 1, 2, 3))
    assert layout.codes == {"necrosis": 1, "oedema": 2, "enhancing": 4}
    assert layout.region_codes == {"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)}
    assert layout.label_codes == [1, 2, 4]
    cases = find_cases(tmp_path)
    assert [case["case"] for case in cases] == ["Brats18_A_1", "Brats18_B_1", "Brats18_C_1"]
    assert names(cases[1]["image"]) == [f"Brats18_B_1_{suffix}.nii.gz" for suffix in OLD]
    assert cases[1]["label"] == str(tmp_path / "LGG/Brats18_B_1/Brats18_B_1_seg.nii.gz")
    assert "missing" not in cases[1]


def test_brats2023(tmp_path: Path) -> None:
    case = "BraTS-GLI-00000-000"
    write_case(tmp_path / case, case, suffixes=NEW, separator="-", codes=(1, 2, 3))
    layout = find_layout(tmp_path)
    assert (layout.name, layout.label_codes) == ("brats2023", [1, 2, 3])
    assert names(find_cases(tmp_path)[0]["image"]) == [f"{case}-{s}.nii.gz" for s in NEW]


def test_decathlon(tmp_path: Path) -> None:
    write_task01(tmp_path, ("BRATS_002", "BRATS_001"))
    layout = find_layout(tmp_path)
    assert (layout.name, layout.channel_order) == ("msd", (2, 1, 3, 0))
    assert layout.codes == {"necrosis": 2, "oedema": 1, "enhancing": 3}
    assert layout.region_codes == {"TC": (2, 3), "WT": (2, 1, 3), "ET": (3,)}
    legacy = find_layout(tmp_path, legacy_et=True)
    assert legacy.region_codes == {"TC": (3, 2), "WT": (3, 1, 2), "ET": (2,)}
    cases = find_cases(tmp_path)
    assert [case["case"] for case in cases] == ["BRATS_001", "BRATS_002"]
    assert cases[0]["image"] == str(tmp_path / "imagesTr/BRATS_001.nii.gz")
    assert cases[0]["label"] == str(tmp_path / "labelsTr/BRATS_001.nii.gz")


def test_decathlon_order_and_codes_come_from_dataset_json(tmp_path: Path) -> None:
    write_task01(tmp_path)
    content = {
        "modality": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "labels": {"0": "background", "1": "necrosis", "2": "oedema", "3": "enhancing"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    layout = find_layout(tmp_path)
    assert layout.channel_order == (1, 0, 2, 3)
    assert layout.label_codes == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": {"0": "FLAIR", "1": "T1w"}}, "modality"),
        ({"labels": {"0": "background", "1": "liver"}}, "liver"),
        ({"modality": None}, "channel order"),
    ],
)
def test_unfit_dataset_json(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_task01(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(TASK01 | change))
    with pytest.raises(DataError, match=rf"dataset\.json.*{message}"):
        find_layout(tmp_path)


def test_decathlon_without_dataset_json(tmp_path: Path) -> None:
    (write_task01(tmp_path) / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset\.json can't be read"):
        find_layout(tmp_path)


def test_one_case_folder_plain_nii_any_letter_case(tmp_path: Path) -> None:
    folder = write_case(
        tmp_path / "P-7", "P-7", suffixes=("T1CE", "T1", "T2", "Flair"), extension=".nii"
    )
    (case,) = find_cases(folder)
    assert case["case"] == "P-7"
    assert names(case["image"]) == ["P-7_T1CE.nii", "P-7_T1.nii", "P-7_T2.nii", "P-7_Flair.nii"]


def test_all_cases_in_one_folder(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_case(tmp_path, "b", codes=None)
    assert [(case["case"], bool(case["label"])) for case in find_cases(tmp_path)] == [
        ("a", True),
        ("b", False),
    ]


def test_incomplete_case_is_reported(tmp_path: Path) -> None:
    write_case(tmp_path / "whole", "whole")
    folder = write_case(tmp_path / "half", "half")
    (folder / "half_t1ce.nii.gz").unlink()
    (folder / "half_t2.nii.gz").unlink()
    half, whole = scan(tmp_path)
    assert half.missing == ("T1ce", "T2")
    assert half.folder == str(folder)
    assert names(list(half.images)) == ["half_t1.nii.gz", "half_flair.nii.gz"]
    assert find_cases(tmp_path)[0]["missing"] == ["T1ce", "T2"]
    assert whole.missing == ()


def test_label_under_another_name_as_in_brats2020(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "BraTS20_Training_355", "BraTS20_Training_355")
    label = folder / "W39_1998.09.19_Segm.nii.gz"
    (folder / "BraTS20_Training_355_seg.nii.gz").rename(label)
    (case,) = find_cases(tmp_path)
    assert (case["case"], case["label"]) == ("BraTS20_Training_355", str(label))


def test_junk_is_passed_over(tmp_path: Path) -> None:
    write_case(tmp_path / "a", "a")
    write_case(tmp_path / "__MACOSX" / "a", "a")
    write_case(tmp_path / ".hidden" / "a", "a")
    (tmp_path / "a" / "._a_t1.nii.gz").write_bytes(b"junk")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(find_cases(tmp_path)) == 1


def test_linked_case_folders_are_followed(tmp_path: Path) -> None:
    write_case(tmp_path / "store" / "a", "a")
    (tmp_path / "use").mkdir()
    (tmp_path / "use" / "a").symlink_to(tmp_path / "store" / "a")
    assert find_cases(tmp_path / "use")[0]["label"] == str(tmp_path / "use/a/a_seg.nii.gz")


def test_a_case_twice(tmp_path: Path) -> None:
    write_case(tmp_path / "1mm" / "a", "a")
    write_case(tmp_path / "2mm" / "a", "a")
    with pytest.raises(DataError, match=r"Case a is there twice, in .*1mm/a and .*2mm/a"):
        scan(tmp_path)


@pytest.mark.parametrize("codes", [None, (1, 2, 4)])
def test_a_label_map_alone_is_probably_a_prediction(
    tmp_path: Path, codes: tuple[int, ...] | None
) -> None:
    folder = write_case(tmp_path / "a", "a", codes=codes)
    write_case(tmp_path / "preds", "a", suffixes=())
    with pytest.raises(DataError, match="A label map alone is probably a prediction") as caught:
        scan(tmp_path)
    there = ", ".join(f"a_{suffix}.nii.gz" for suffix in (*OLD, *(["seg"] if codes else [])))
    assert f"in {folder} and {tmp_path / 'preds'} ({there}; a_seg.nii.gz)" in str(caught.value)


def test_folders_named_like_files(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a", "a", extension=".nii")
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        (path / path.name).write_bytes(content)
    with pytest.raises(DataError, match="have to lie in one folder: move them together"):
        scan(tmp_path)


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("a", "b"):
        write_case(tmp_path / "brats" / case, case)
    task = write_task01(tmp_path / "task")
    for folder in (tmp_path / "brats" / "a", tmp_path / "brats", task / "labelsTr"):
        with monkeypatch.context() as patch:
            forbid(patch, folder)
            with pytest.raises(FolderError, match=rf"{folder} can't be read.*chmod") as caught:
                scan(task if task in folder.parents else tmp_path / "brats")
        assert caught.value.kind == "unreadable-folder"


def test_what_a_disk_keeps_for_itself_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "a", "a")
    (tmp_path / "lost+found").mkdir()
    forbid(monkeypatch, tmp_path / "lost+found")
    assert len(scan(tmp_path)) == 1


def test_files_that_are_not_used_are_recorded(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a", "a")
    (folder / "a_t2.nii.gz").rename(folder / "a_T2W.nii.gz")
    write_case(folder, "a", suffixes=("flair",), extension=".nii", codes=None)
    (record,) = scan(tmp_path)
    assert record.missing == ("T2",)
    assert record.misnamed == ((str(folder / "a_T2W.nii.gz"), "a_t2.nii.gz"),)
    pair = (str(folder / "a_flair.nii"), str(folder / "a_flair.nii.gz"))
    assert record.doubles == (pair,)
    assert record.images[-1] == pair[0]
    task = write_task01(tmp_path / "task", ("B",))
    (task / "labelsTr" / "B.nii").write_bytes(b"")
    (record,) = scan(task)
    assert record.label == str(task / "labelsTr" / "B.nii")
    assert record.doubles == ((record.label, str(task / "labelsTr" / "B.nii.gz")),)


def test_label_maps_without_an_image(tmp_path: Path) -> None:
    task = write_task01(tmp_path / "task", ("B", "C"))
    (task / "imagesTr" / "C.nii.gz").unlink()
    assert lone_labels(task) == [str(task / "labelsTr" / "C.nii.gz")]
    assert lone_labels(write_case(tmp_path / "a", "a")) == []


def test_errors_of_folders_travel_between_processes(tmp_path: Path) -> None:
    with pytest.raises(FolderError) as caught:
        scan(tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind) == (str(caught.value), "no-case")


def test_two_layouts(tmp_path: Path) -> None:
    write_case(tmp_path / "a", "a")
    write_case(tmp_path / "b", "b", suffixes=NEW, separator="-", codes=(1, 2, 3))
    with pytest.raises(DataError, match=r"two layouts.*a is brats and b is brats2023"):
        find_layout(tmp_path)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"it holds nothing.*BraTS 2018-2022.*Decathlon Task01"):
        find_cases(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="is a file, not a folder"):
        find_cases(tmp_path / "notes.txt")
    write_task01(tmp_path / "Task01_BrainTumour")
    with pytest.raises(DataError, match=r"notes\.txt.*Did you mean .*Task01_BrainTumour\?"):
        find_cases(tmp_path)


# Literal truth about the real cases: label codes of TC, WT, ET, and how to read each channel.
CODES_OLD = {"TC": [1, 4], "WT": [1, 2, 4], "ET": [4]}
CODES_NEW = {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}
CODES_MSD = {"TC": [2, 3], "WT": [1, 2, 3], "ET": [3]}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "name", "count", "first", "codes"),
    [
        ("brats2018_1mm", "brats", 8, "Brats18_2013_11_1", CODES_OLD),
        ("brats2018_2mm", "brats", 45, "Brats18_2013_11_1", CODES_OLD),
        ("brats2021", "brats", 1, "BraTS2021_00495", CODES_OLD),
        ("brats2023", "brats2023", 1, "BraTS-GLI-00000-000", CODES_NEW),
        ("Task01_BrainTumour", "msd", 1, "BRATS_001", CODES_MSD),
    ],
)
def test_real_cases(
    real_data: Path, folder: str, name: str, count: int, first: str, codes: dict[str, list[int]]
) -> None:
    root = real_data / folder
    layout, cases = find_layout(root), find_cases(root)
    assert (layout.name, len(cases), cases[0]["case"]) == (name, count, first)
    ids = [path.name for path in root.iterdir() if path.is_dir()]
    if name != "msd":
        assert [case["case"] for case in cases] == sorted(ids)
    load = Compose(
        [
            LoadImaged(["image", "label"], ensure_channel_first=True),
            ReorderChannelsd("image", layout.channel_order),
            LabelsToRegionsd("label", layout.codes),
        ]
    )
    loaded = load(cases[0])
    case_folder = root / first
    if name == "msd":
        stack = np.asarray(nib.load(root / "imagesTr" / "BRATS_001.nii.gz").dataobj)
        channels = [stack[..., index] for index in (2, 1, 3, 0)]
        label_path = root / "labelsTr" / "BRATS_001.nii.gz"
    else:
        suffixes = ("t1c", "t1n", "t2w", "t2f") if name == "brats2023" else OLD
        mark = "-" if name == "brats2023" else "_"
        files = [case_folder / f"{first}{mark}{suffix}.nii.gz" for suffix in suffixes]
        channels = [np.asarray(nib.load(file).dataobj) for file in files]
        label_path = case_folder / f"{first}{mark}seg.nii.gz"
    for index in range(len(CHANNELS)):
        np.testing.assert_array_equal(loaded["image"][index].numpy(), channels[index])
    label = np.asarray(nib.load(label_path).dataobj)
    counts = [int(np.isin(label, codes[region]).sum()) for region in ("TC", "WT", "ET")]
    assert loaded["label"].sum(dim=(1, 2, 3)).tolist() == counts
    assert min(counts) > 0
