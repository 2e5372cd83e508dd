"""Unlabelled cases come along with labelled ones and change nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.data.utils import set_rnd
from monai.transforms import (
    Compose,
    LoadImaged,
    Orientationd,
    RandFlipd,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
)

from mod_components.data import LabelsToRegionsd, ReorderChannelsd, find_cases, scan
from mod_components.data.unlabelled import WithUnlabelled, add_unlabelled
from mod_components.errors import SettingsError
from tests.data.folders import NEW, write_case, write_cases, write_task01

ROI = (4, 4, 4)
CODES = {"necrosis": 1, "oedema": 2, "enhancing": 4}


def labelled(root: Path, cases: int = 3) -> CacheDataset:
    write_cases(root, cases)
    keys = ["image", "label"]
    transform = Compose(
        [
            LoadImaged(keys, reader="NibabelReader", ensure_channel_first=True),
            ReorderChannelsd("image", (0, 1, 2, 3)),
            Orientationd(keys, axcodes="LPS", labels=None),
            LabelsToRegionsd("label", CODES),
            Compose([RandSpatialCropd(keys, ROI, random_size=False)]),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandFlipd("label", prob=0.5, spatial_axis=0),
        ]
    )
    return CacheDataset(find_cases(root), transform, num_workers=1, progress=False)


def unlabelled(root: Path, number: int = 2) -> list[dict[str, object]]:
    for index in range(number):
        write_case(root / f"U{index}", f"U{index}", codes=None)
    return [{"case": r.case, "image": list(r.images)} for r in scan(root)]


def test_without_unlabelled_cases_nothing_changes(tmp_path: Path) -> None:
    dataset = labelled(tmp_path)
    assert add_unlabelled(dataset, []) is dataset


def test_items_stay_and_unlabelled_crops_come_along(tmp_path: Path) -> None:
    plain = labelled(tmp_path / "labelled")
    mixed = add_unlabelled(plain, unlabelled(tmp_path / "unlabelled"), ratio=2)
    assert len(mixed) == len(plain) == 3
    for index in range(3):
        set_rnd(plain, 7)
        expected = plain[index]
        set_rnd(plain, 7)
        item = mixed[index]
        assert set(item) == {*expected, "unlabelled", "unlabelled_key"}
        torch.testing.assert_close(item["image"], expected["image"])
        torch.testing.assert_close(item["label"], expected["label"])
        assert item["unlabelled"].shape == (2, 4, *ROI)
        assert type(item["unlabelled"]) is torch.Tensor
        # write_case fills channel i with i + 1
        np.testing.assert_array_equal(item["unlabelled"].amax((0, 2, 3, 4)), [1, 2, 3, 4])
    batch = next(iter(DataLoader(mixed, batch_size=3)))
    assert batch["unlabelled"].shape == (3, 2, 4, *ROI)
    assert batch["unlabelled_key"].shape == (3, 2)
    assert batch["image"].shape == (3, 4, *ROI)


def test_which_ones_come_is_seeded_and_changes(tmp_path: Path) -> None:
    mixed = add_unlabelled(labelled(tmp_path / "l"), unlabelled(tmp_path / "u", 5))

    def drawn(seed: int) -> list[int]:
        set_rnd(mixed, seed)
        return [int(mixed[index]["unlabelled_key"]) for index in (0, 1, 2) * 10]

    first = drawn(1)
    assert drawn(1) == first
    assert drawn(2) != first
    assert len(set(first)) == 5


def test_workers_draw_the_same_when_seeded(tmp_path: Path) -> None:
    mixed = add_unlabelled(labelled(tmp_path / "l"), unlabelled(tmp_path / "u", 5))

    def drawn() -> list[int]:
        torch.manual_seed(3)
        loader = DataLoader(mixed, batch_size=1, num_workers=1)
        return [int(batch["unlabelled_key"]) for batch in loader]

    assert drawn() == drawn()


@pytest.mark.parametrize("layout", ["brats2023", "msd"])
def test_unlabelled_cases_of_another_layout_get_their_own_channel_order(
    tmp_path: Path, layout: str
) -> None:
    root = tmp_path / "other"
    if layout == "msd":
        write_task01(root)
        order = (2, 1, 3, 0)
    else:
        write_case(root / "N", "N", suffixes=NEW, separator="-", codes=None)
        order = (0, 1, 2, 3)
    cases = [{"case": c["case"], "image": c["image"]} for c in find_cases(root)]
    mixed = add_unlabelled(labelled(tmp_path / "l"), cases, order)
    channels = mixed[0]["unlabelled"][0].amax((1, 2, 3)).tolist()
    # write_task01 fills channel i on disk with i + 1: FLAIR 1, T1 2, T1Gd 3, T2 4
    assert channels == ([3, 2, 4, 1] if layout == "msd" else [1, 2, 3, 4])


def test_a_ratio_below_one_is_told(tmp_path: Path) -> None:
    dataset = labelled(tmp_path)
    with pytest.raises(
        SettingsError, match="unlabelled_ratio must be a whole number from 1, got 0"
    ):
        WithUnlabelled(dataset, dataset, 0)


@pytest.mark.parametrize("ratio", ["1.5", "many"])
def test_a_ratio_that_is_no_number_is_told(tmp_path: Path, ratio: str) -> None:
    dataset = labelled(tmp_path / "l")
    with pytest.raises(SettingsError, match="unlabelled_ratio must be a whole number"):
        add_unlabelled(dataset, unlabelled(tmp_path / "u"), ratio=ratio)


def test_other_data_sets_and_several_crops_a_case(tmp_path: Path) -> None:
    cached = labelled(tmp_path / "l")
    cases = unlabelled(tmp_path / "u")
    plain = Dataset(cached.data, cached.transform)
    assert add_unlabelled(plain, cases)[0]["unlabelled"].shape == (1, 4, *ROI)
    several = Compose(
        [cached.transform, RandSpatialCropSamplesd(["image", "label"], (2, 2, 2), num_samples=2)]
    )
    with pytest.raises(SettingsError, match=r"one crop a case.* these give a list of 2"):
        add_unlabelled(Dataset(cached.data, several), cases)[0]
