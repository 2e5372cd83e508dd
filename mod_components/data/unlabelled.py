"""Unlabelled scans beside labelled ones: what the MOD losses learn from and nothing else sees."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose, MapTransform, Randomizable
from torch.utils.data import Dataset

from mod_components.data.cache import CachedCases
from mod_components.data.transforms import LabelsToRegionsd, ReorderChannelsd
from mod_components.errors import SettingsError
from mod_components.settings import whole_number

__all__ = ["UNLABELLED", "UNLABELLED_KEY", "WithUnlabelled", "add_unlabelled", "image_transform"]

UNLABELLED = "unlabelled"
"""Key of unlabelled crops (R, 4, D, H, W) in a training item."""

UNLABELLED_KEY = "unlabelled_key"
"""Key of the numbers (R,) that stand for their cases in the drawing of masks and views."""


class WithUnlabelled(Dataset):
    """A data set of labelled cases, each of which brings unlabelled ones along.

    Its length, order and labelled items are those of the labelled data set, so that a run with
    unlabelled scans makes the same updates on the same labelled crops as one without. What comes
    along is drawn anew each time, with replacement, from MONAI's random state. It lies under keys
    of its own, which the trainer's segmentation loss does not know;
    :class:`~mod_components.mod.MaskedViews` does.

    Args:
        labelled: items are dictionaries.
        unlabelled: items with ``"case"`` and ``"image"`` (4, D, H, W), cropped to one size.
        ratio: unlabelled crops that come with each labelled one.

    Raises:
        SettingsError: if ``ratio`` is no whole number from 1.
    """

    def __init__(self, labelled: Dataset, unlabelled: Dataset, ratio: int | str = 1) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.ratio = whole_number("unlabelled_ratio", ratio, 1)
        self.choice = _Choice()  # found and seeded by MONAI's set_rnd, as the transforms are

    def __len__(self) -> int:
        return len(self.labelled)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[Any, Any]:
        """The labelled item, with ``unlabelled`` and ``unlabelled_key`` added."""
        item = _one_crop(self.labelled[index])
        chosen = self.choice.draw(len(self.unlabelled), self.ratio)  # type: ignore[arg-type]
        companions = [_one_crop(self.unlabelled[other]) for other in chosen]
        # plain tensors: a batch of crops from many scans has no one affine
        images = [torch.as_tensor(companion["image"]) for companion in companions]
        images = [image.as_tensor() if hasattr(image, "as_tensor") else image for image in images]
        keys = [zlib.crc32(str(companion["case"]).encode()) for companion in companions]
        item[UNLABELLED] = torch.stack(images)  # (R, 4, D, H, W)
        item[UNLABELLED_KEY] = torch.tensor(keys, dtype=torch.int64)
        return item


def _one_crop(item: Any) -> dict[Any, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    raise SettingsError(
        "unlabelled scans need transforms that give one crop a case, such as RandSpatialCropd; "
        f"these give a {type(item).__name__} of {len(item)}."
    )


class _Choice(Randomizable):
    def draw(self, size: int, number: int) -> list[int]:
        return [int(index) for index in self.R.randint(size, size=number)]


def add_unlabelled(
    dataset: MonaiDataset,
    cases: Sequence[Mapping[str, Any]],
    channel_order: Sequence[int] = (0, 1, 2, 3),
    ratio: int | str = 1,
    cache_rate: float = 0.0,
    cache_dir: str = "",
) -> Dataset:
    """Let unlabelled cases come along with a training data set, preprocessed as its images are.

    Args:
        dataset: the labelled data set with its transforms.
        cases: unlabelled cases, ``{"case", "image"}``; none leave the data set as it is.
        channel_order: ``Layout.channel_order`` of the unlabelled cases.
        ratio: see :class:`WithUnlabelled`.
        cache_rate: share of the unlabelled cases that is kept in memory.
        cache_dir: as of :class:`~mod_components.data.CachedCases`.

    Raises:
        DataError: if ``cache_dir`` cannot be written to.
        SettingsError: as :class:`WithUnlabelled`.
    """
    if not cases:
        return dataset
    transform = image_transform(dataset.transform, channel_order)
    unlabelled = CachedCases(list(cases), transform, cache_rate, cache_dir)
    return WithUnlabelled(dataset, unlabelled, ratio)


def image_transform(transform: Compose, channel_order: Sequence[int]) -> Compose:
    """A copy of a chain of dictionary transforms that leaves labels out.

    Args:
        transform: transforms of images and labels.
        channel_order: what :class:`~mod_components.data.ReorderChannelsd` has to do now.
    """
    chain: list[Any] = []
    for step in transform.flatten().transforms:
        if isinstance(step, LabelsToRegionsd):
            continue
        if isinstance(step, ReorderChannelsd):
            chain.append(ReorderChannelsd(step.keys, channel_order))
            continue
        step = copy.deepcopy(step)
        if isinstance(step, MapTransform):
            step.keys = tuple(key for key in step.keys if key != "label")
            if not step.keys:
                continue
        chain.append(step)
    return Compose(chain)
