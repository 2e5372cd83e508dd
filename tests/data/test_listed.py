"""Cases that another program lists: files found, checked, and their labels read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mod_components.data import FindModalitiesd, LabelsToRegionsd, find_cases
from mod_components.data.listed import listed_layout, listed_records, usable_listed
from mod_components.errors import DataError
from tests.data.folders import NEW, write_case, write_volume

SHAPE = (6, 5, 4)


def listed(folder: Path, case: str, codes: tuple[int, ...] = (1, 2, 4)) -> dict[str, Any]:
    """A case as MONAI Label lists it: one of its four files, and a label map elsewhere."""
    write_case(folder / "images", case, codes=None)
    label = np.zeros(np.asarray(SHAPE), np.uint8)
    label.flat[: len(codes)] = codes
    write_volume(folder / "labels" / "final" / f"{case}_flair.nii.gz", label)
    return {
        "image": str(folder / "images" / f"{case}_flair.nii.gz"),
        "label": str(folder / "labels" / "final" / f"{case}_flair.nii.gz"),
    }


def test_the_four_files_are_put_in_place_of_one(tmp_path: Path) -> None:
    for name, options in (("old", {}), ("new", {"suffixes": NEW, "separator": "-"})):
        write_case(tmp_path / name / "A", "A", **options)  # type: ignore[arg-type]
        (case,) = find_cases(tmp_path / name)
        for path in case["image"]:
            assert FindModalitiesd("image")({"image": path})["image"] == case["image"]
        assert FindModalitiesd("image")(case)["image"] == case["image"]
    stack = str(tmp_path / "stack.nii.gz")
    assert FindModalitiesd("image")({"image": stack})["image"] == stack


def test_a_case_that_lacks_a_modality_is_named(tmp_path: Path) -> None:
    case = listed(tmp_path, "A")
    (tmp_path / "images" / "A_t2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case A in .*images lacks T2"):
        FindModalitiesd("image")(case)
    with pytest.raises(DataError, match=r"case A in .*images lacks T2"):
        usable_listed([case], [], skip_bad=False)


def test_listed_cases_are_checked(tmp_path: Path) -> None:
    cases = [listed(tmp_path, name) for name in "ABC"]
    layout, training, validation = usable_listed(cases[:2], cases[2:], skip_bad=False)
    assert (layout.name, layout.channel_order) == ("brats", (0, 1, 2, 3))
    assert [case["case"] for case in training] == ["A", "B"]
    assert [case["case"] for case in validation] == ["C"]
    assert training[0]["label"] == cases[0]["label"]
    write_volume(Path(cases[1]["label"]), np.full(SHAPE, 7, np.uint8))
    with pytest.raises(DataError, match="label code 7"):
        usable_listed(cases[:2], cases[2:], skip_bad=False)
    _, training, _ = usable_listed(cases[:2], cases[2:], skip_bad=True)
    assert [case["case"] for case in training] == ["A"]


def test_the_only_case_with_a_code_may_be_bad(tmp_path: Path) -> None:
    cases = [listed(tmp_path, "A"), listed(tmp_path, "B", (1, 2, 3))]
    image = Path(cases[1]["image"])
    image.write_bytes(image.read_bytes()[:20])
    with pytest.raises(DataError, match="B"):
        usable_listed(cases, [], skip_bad=False)
    _, training, _ = usable_listed(cases, [], skip_bad=True)
    assert [case["case"] for case in training] == ["A"]
    Path(cases[0]["image"]).unlink()
    with pytest.raises(DataError):
        usable_listed(cases, [], skip_bad=True)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label one first"):
        usable_listed([], [listed(tmp_path, "A")], skip_bad=False)
    with pytest.raises(DataError, match="without a label map"):
        usable_listed([{"image": "A_flair.nii.gz", "label": ""}], [], skip_bad=False)


def test_enhancing_tumour_is_4_or_3_and_never_both(tmp_path: Path) -> None:
    """The codes of the metadata, and the places that 3D Slicer submits."""
    cases = [listed(tmp_path, "A", (1, 2, 4)), listed(tmp_path, "B", (1, 2, 3))]
    layout, training, _ = usable_listed(cases, [], skip_bad=False)
    assert [case["case"] for case in training] == ["A", "B"]
    to_regions = LabelsToRegionsd("label", layout.codes, aliases=layout.aliases)
    for codes in ((1, 2, 4), (1, 2, 3)):
        label = torch.tensor([[[codes, (0, 0, 0)]]])
        expected = [[1, 0, 1], [1, 1, 1], [0, 0, 1]]  # TC, WT, ET of core, oedema, enhancing
        assert to_regions({"label": label})["label"][:, 0, 0].tolist() == expected
    both = listed(tmp_path, "C", (1, 2, 3, 4))
    with pytest.raises(DataError, match="3 beside 4 is non-enhancing core"):
        usable_listed([*cases, both], [], skip_bad=False)


def test_channel_order_of_4d_files(tmp_path: Path) -> None:
    image, label = tmp_path / "flat" / "A.nii.gz", tmp_path / "labels" / "A.nii.gz"
    write_volume(image, np.ones((*SHAPE, 4), np.int16))
    write_volume(label, np.ones(SHAPE, np.uint8))
    flat = {"image": str(image), "label": str(label)}
    assert listed_layout(listed_records([flat])).channel_order == (0, 1, 2, 3)
    named = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (tmp_path / "flat" / "dataset.json").write_text(json.dumps({"modality": named}))
    assert listed_layout(listed_records([flat])).channel_order == (2, 1, 3, 0)
    four = listed(tmp_path, "B")
    with pytest.raises(DataError, match="cases A and B come in different orders"):
        listed_layout(listed_records([flat, four]))


def test_a_case_is_used_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MONAI Label lists each of its four files, and may train on one and validate on another."""
    first, other = listed(tmp_path, "A"), listed(tmp_path, "B")
    twin = {**first, "image": first["image"].replace("flair", "t1ce")}
    _, training, validation = usable_listed([first, twin], [twin, other], skip_bad=False)
    assert [case["case"] for case in training] == ["A"]
    assert [case["case"] for case in validation] == ["B"]
    assert caplog.text.count("case A is listed twice") == 2
