"""Transforms against naive loops, and their round trip."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged

from mod_components.data import (
    DataError,
    EnsureFinited,
    LabelsToRegionsd,
    LoadCased,
    NestRegionsd,
    RandShiftForegroundd,
    RegionsToLabelsd,
    ReorderChannelsd,
    brain_or_all,
)
from tests.data.folders import OLD, write_case, write_volume

BRATS = {"necrosis": 1, "oedema": 2, "enhancing": 4}
MSD = {"necrosis": 2, "oedema": 1, "enhancing": 3}
SIZE = (5, 4, 3)


def with_meta(array: np.ndarray) -> MetaTensor:
    affine = torch.diag(torch.tensor([-2.0, -2.0, 2.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(array), affine=affine, meta={"filename_or_obj": "a.nii"})


def random_labels(codes: dict[str, int]) -> np.ndarray:
    values = [0, *codes.values()]
    return np.random.default_rng(0).choice(values, size=(1, *SIZE)).astype(np.float32)


def has_meta(value: object) -> bool:
    return (
        isinstance(value, MetaTensor)
        and value.meta["filename_or_obj"] == "a.nii"
        and value.affine[0, 0] == -2
    )


def test_reorder_channels() -> None:
    image = np.random.default_rng(0).normal(size=(4, *SIZE)).astype(np.float32)
    data = {"image": with_meta(image)}
    result = ReorderChannelsd("image", (2, 1, 3, 0))(data)["image"]
    expected = np.stack([image[2], image[1], image[3], image[0]])
    np.testing.assert_array_equal(result.numpy(), expected)
    assert has_meta(result)
    np.testing.assert_array_equal(data["image"].numpy(), image)
    plain = ReorderChannelsd("image", (2, 1, 3, 0))({"image": image})["image"]
    np.testing.assert_array_equal(plain, expected)


def test_reorder_channels_refuses() -> None:
    with pytest.raises(ValueError, match="permutation"):
        ReorderChannelsd("image", (0, 1, 1, 2))
    with pytest.raises(ValueError, match=r"4 channels \(T1ce, T1, T2, FLAIR\), got shape \(1,"):
        ReorderChannelsd("image", (0, 1, 2, 3))({"image": torch.zeros(1, *SIZE)})


@pytest.mark.parametrize("codes", [BRATS, MSD])
def test_labels_to_regions_against_a_loop(codes: dict[str, int]) -> None:
    labels = random_labels(codes)
    expected = np.zeros((3, *SIZE), np.uint8)
    for place in itertools.product(*map(range, SIZE)):
        code = labels[(0, *place)]
        expected[(0, *place)] = code in (codes["necrosis"], codes["enhancing"])
        expected[(1, *place)] = code != 0
        expected[(2, *place)] = code == codes["enhancing"]
    result = LabelsToRegionsd("label", codes)({"label": with_meta(labels)})["label"]
    np.testing.assert_array_equal(result.numpy(), expected)
    assert result.dtype == torch.uint8
    assert has_meta(result)
    plain = LabelsToRegionsd("label", codes)({"label": labels})["label"]
    np.testing.assert_array_equal(plain, expected)


@pytest.mark.parametrize("codes", [BRATS, MSD])
def test_round_trip(codes: dict[str, int]) -> None:
    labels = with_meta(random_labels(codes))
    both = Compose([LabelsToRegionsd("label", codes), RegionsToLabelsd("label", codes)])
    result = both({"label": labels})["label"]
    np.testing.assert_array_equal(result.numpy(), labels.numpy())
    assert has_meta(result)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_regions_to_labels_against_a_loop(kind: torch.dtype) -> None:
    regions = np.random.default_rng(1).integers(0, 2, size=(3, *SIZE))
    expected = np.zeros((1, *SIZE), np.uint8)
    for place in itertools.product(*map(range, SIZE)):
        core, whole, enhancing = (regions[(channel, *place)] for channel in range(3))
        expected[(0, *place)] = 4 if enhancing else 1 if core else 2 if whole else 0
    data = {"pred": MetaTensor(torch.as_tensor(regions).to(kind))}
    result = RegionsToLabelsd("pred", BRATS)(data)["pred"]
    np.testing.assert_array_equal(result.numpy(), expected)


def test_nested_regions_are_those_of_the_written_label_map() -> None:
    regions = with_meta(np.random.default_rng(2).integers(0, 2, (3, *SIZE)).astype(np.float32))
    nested = NestRegionsd("pred")({"pred": regions})["pred"]
    written = Compose([RegionsToLabelsd("pred", BRATS), LabelsToRegionsd("pred", BRATS)])
    np.testing.assert_array_equal(nested.numpy(), written({"pred": regions})["pred"].numpy())
    assert nested.dtype == torch.float32
    assert has_meta(nested)
    # Regions that are nested already stay as they are.
    again = NestRegionsd("pred")({"pred": nested})["pred"]
    np.testing.assert_array_equal(again.numpy(), nested.numpy())


@pytest.mark.parametrize("channels", [1, 4])
def test_wrong_number_of_channels(channels: int) -> None:
    data = {"pred": torch.zeros(channels, *SIZE)}
    for transform in (RegionsToLabelsd("pred", BRATS), NestRegionsd("pred")):
        with pytest.raises(ValueError, match=r"'pred' must have 3 channel"):
            transform(data)
    with pytest.raises(ValueError, match="must name necrosis"):
        LabelsToRegionsd("pred", {"oedema": 1})


def test_shift_spares_the_background() -> None:
    image = np.random.default_rng(3).normal(size=(4, *SIZE)).astype(np.float32)
    image[:, 0] = 0
    image[1:, 1] = 0  # zero in three channels of four: still foreground
    transform = RandShiftForegroundd("image", 0.1, prob=1.0).set_random_state(5)
    result = transform({"image": with_meta(image)})["image"]
    assert has_meta(result)
    expected = image.copy()
    offset = float(result[0, 2, 0, 0]) - image[0, 2, 0, 0]
    assert 0 < abs(offset) <= 0.1
    expected[:, 1:] += offset
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    assert (result[:, 0] == 0).all()


def test_shift_is_seeded_bounded_and_as_rare_as_asked() -> None:
    image = torch.ones(1, 2, 2, 2)

    def draw(seed: int) -> np.ndarray:
        transform = RandShiftForegroundd("image", (0.2, 0.5), prob=0.3).set_random_state(seed)
        return np.array([float(transform({"image": image})["image"].mean()) for _ in range(300)])

    first = draw(1)
    np.testing.assert_array_equal(first, draw(1))
    assert (first != draw(2)).any()
    shifted = first[first != 1] - 1
    assert 0.2 < len(shifted) / 300 < 0.4
    assert shifted.min() >= 0.2 - 1e-6
    assert shifted.max() <= 0.5 + 1e-6
    assert len(np.unique(shifted)) > 50
    never = RandShiftForegroundd("image", 1.0, prob=0.0)({"image": image})["image"]
    assert never is image


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    write_case(tmp_path, "A")
    case = {"case": "A", "image": [str(tmp_path / f"A_{name}.nii.gz") for name in OLD]}
    load = LoadCased("image", "NibabelReader", ensure_channel_first=True, image_only=True)
    whole = LoadImaged("image", "NibabelReader", ensure_channel_first=True, image_only=True)
    assert torch.equal(load(case)["image"], whole(case)["image"])
    path = Path(case["image"][2])
    noise = np.random.default_rng(0).integers(0, 999, (8, 8, 8)).astype(np.int16)
    write_volume(path, noise)
    path.write_bytes(path.read_bytes()[:600])
    message = rf"^case A: {path} can't be read \(.*\): copy or download it again\."
    with pytest.raises(DataError, match=message):
        load(case)


def test_an_error_that_is_not_a_files_stays_what_it_is(tmp_path: Path) -> None:
    """Files that can be read one by one, but do not fit each other."""
    write_case(tmp_path, "A")
    write_volume(tmp_path / "A_t2.nii.gz", np.zeros((8, 8, 8), np.int16))
    files = [str(tmp_path / f"A_{name}.nii.gz") for name in OLD]
    with pytest.raises(Exception, match=r"(?i)shape|affine|spatial") as caught:
        LoadCased("image", "NibabelReader")({"case": "A", "image": files})
    assert not isinstance(caught.value, DataError)


def test_an_image_of_numbers_stays_as_it_is() -> None:
    image = with_meta(np.zeros((4, *SIZE), np.float32))
    assert EnsureFinited("image")({"image": image})["image"] is image


@pytest.mark.parametrize(
    ("voxels", "names"),
    [({0: np.nan}, "T1ce"), ({2: -np.inf}, "T2"), ({1: np.nan, 3: np.inf}, "T1, FLAIR")],
)
def test_voxels_that_are_no_numbers_are_refused(voxels: dict[int, float], names: str) -> None:
    array = np.ones((4, *SIZE), np.float32)
    for channel, value in voxels.items():
        array[channel, 1, 2, 0] = value
    message = rf"^case A \(a\.nii\) has voxels .* in {names}: convert the scan again"
    with pytest.raises(DataError, match=message):
        EnsureFinited("image")({"image": with_meta(array), "case": "A"})


def test_the_brain_or_all_of_an_image_without_one() -> None:
    image = torch.tensor([[[0.0, 2.0], [-1.0, 0.0]]])
    select = pickle.loads(pickle.dumps(brain_or_all))  # as a process that reads gets it
    assert select(image).tolist() == [[[False, True], [True, False]]]
    assert select(torch.zeros(1, 2, 2)).all()
