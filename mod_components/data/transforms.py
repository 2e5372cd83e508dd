"""MONAI transforms for channel order, regions and foreground intensity."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import ImageReader
from monai.transforms import LoadImaged, MapTransform, RandomizableTransform
from monai.utils import TransformBackends, ensure_tuple
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor

from mod_components.data.records import CHANNELS, REGIONS, Layout
from mod_components.errors import DataError

_TORCH = [TransformBackends.TORCH, TransformBackends.NUMPY]


class ReorderChannelsd(MapTransform):
    """Bring channels into the house's order, T1ce, T1, T2, FLAIR.

    Args:
        keys: keys of images (C, ...).
        order: index on disk of each channel, ``Layout.channel_order``.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: if ``order`` is no permutation, or an image has another number of channels.
    """

    backend = _TORCH

    def __init__(
        self, keys: KeysCollection, order: Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order must be a permutation of 0..{len(order) - 1}, got {order}")
        self.order = [int(index) for index in order]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if d[key].shape[0] != len(self.order):
                expected = f"{len(self.order)} channels"
                if len(self.order) == len(CHANNELS):
                    expected += f" ({', '.join(CHANNELS)})"
                raise ValueError(f"{key!r} must have {expected}, got shape {tuple(d[key].shape)}")
            d[key] = d[key][self.order]
        return d


class LoadCased(LoadImaged):
    """MONAI's ``LoadImaged``, whose error names the case and the file that can't be read.

    A download that was cut short passes every check that does not decompress it, and MONAI's own
    error tells of a transform and the end of a stream.

    Raises:
        DataError: naming case and file.
    """

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, Any]:
        try:
            return super().__call__(data, reader)
        except Exception as error:  # whatever a reader raises
            for key in self.key_iterator(dict(data)):
                for path in ensure_tuple(data[key]):
                    _refuse_unreadable(path, data.get("case", ""), error)
            raise


def _refuse_unreadable(path: str, case: str, error: Exception) -> None:
    try:
        np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except Exception as cause:  # of nibabel, of gzip or of the disk
        raise DataError(
            f"case {case}: {path} can't be read ({cause}): copy or download it again. "
            "`python -m mod_components check FOLDER` finds all such files."
        ) from error


class EnsureFinited(MapTransform):
    """Refuse an image (4, ...) with voxels that are NaN or infinite.

    One of them makes a whole channel NaN when it is normalised, and a network that is given NaN
    finds nothing: without this, a case would count as one without a tumour.

    Args:
        keys: keys of images in the house's order of channels.
        allow_missing_keys: whether a key may be absent.

    Raises:
        DataError: naming case, channels and files.
    """

    backend = _TORCH

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key])
            if torch.isfinite(image).all():
                continue
            named = zip(CHANNELS, image, strict=True)
            bad = [name for name, channel in named if not channel.isfinite().all()]
            file = getattr(d[key], "meta", {}).get("filename_or_obj", "")
            raise DataError(
                f"case {d.get('case', '')} ({file}) has voxels that are not numbers (NaN or "
                f"infinite) in {', '.join(bad)}: convert the scan again, or write 0 for them. "
                "`python -m mod_components check FOLDER` finds all such cases."
            )
        return d


class LabelsToRegionsd(MapTransform):
    """Turn a label map (1, ...) into the regions TC, WT, ET (3, ...), uint8, meta kept.

    Args:
        keys: keys of label maps.
        codes: codes of "necrosis", "oedema" and "enhancing", ``Layout.codes``.
        allow_missing_keys: whether a key may be absent.
        aliases: codes that stand for one of ``codes``, ``Layout.aliases``.

    Raises:
        ValueError: if ``codes`` lacks a name, or a label map has more than one channel.
    """

    backend = _TORCH

    def __init__(
        self,
        keys: KeysCollection,
        codes: Mapping[str, int],
        allow_missing_keys: bool = False,
        aliases: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.codes = _label_codes(codes)
        self.aliases = dict(aliases or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            _expect_channels(key, d[key], 1)
            labels = _plain(d[key])
            for alias, code in self.aliases.items():
                labels = torch.where(labels == alias, code, labels)
            regions = labels_to_regions(labels, self.codes)
            d[key] = convert_to_dst_type(regions, dst=d[key], dtype=torch.uint8)[0]
        return d


class RegionsToLabelsd(MapTransform):
    """Turn binary regions TC, WT, ET (3, ...) into a label map (1, ...), uint8, meta kept.

    ET becomes enhancing, what is left of TC the core, what is left of WT oedema.

    Args:
        keys: keys of regions; a voxel belongs to a region where its value is above 0.5.
        codes: codes of "necrosis", "oedema" and "enhancing", ``Layout.codes``.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: if ``codes`` lacks a name, or there are not 3 channels.
    """

    backend = _TORCH

    def __init__(
        self, keys: KeysCollection, codes: Mapping[str, int], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.codes = _label_codes(codes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            _expect_channels(key, d[key], len(REGIONS))
            labels = regions_to_labels(_plain(d[key]), self.codes)
            d[key] = convert_to_dst_type(labels, dst=d[key], dtype=torch.uint8)[0]
        return d


class NestRegionsd(MapTransform):
    """Make binary regions TC, WT, ET (3, ...) nested, as the label map written from them is.

    Args:
        keys: keys of regions; a voxel belongs to a region where its value is above 0.5.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: if there are not 3 channels.
    """

    backend = _TORCH

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            _expect_channels(key, d[key], len(REGIONS))
            d[key] = convert_to_dst_type(nest_regions(_plain(d[key])), dst=d[key])[0]
        return d


class RandShiftForegroundd(RandomizableTransform, MapTransform):
    """Add one random offset to an image (C, ...), but not where all its channels are exactly 0.

    The background of a skull-stripped scan stays 0, so that the shift can't be read off it.

    Args:
        keys: keys of images; all get the same offset.
        offsets: range of the offset, (low, high); one number means (-number, number).
        prob: probability of a shift.
        allow_missing_keys: whether a key may be absent.
    """

    backend = _TORCH

    def __init__(
        self,
        keys: KeysCollection,
        offsets: float | tuple[float, float],
        prob: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        pair = (-offsets, offsets) if isinstance(offsets, int | float) else tuple(offsets)
        if len(pair) != 2:
            raise ValueError(f"offsets must be a number or (low, high), got {offsets}")
        self.offsets = (min(pair), max(pair))
        self._offset = 0.0

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            self._offset = float(self.R.uniform(*self.offsets))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            shifted = shift_foreground(_plain(d[key]), self._offset)
            d[key] = convert_to_dst_type(shifted, dst=d[key])[0]
        return d


def brain_or_all(image: torch.Tensor) -> torch.Tensor:
    """What of an image is not 0; all of it where nothing is.

    A ``select_fn`` that processes which read can be given on every system, as a lambda can't.

    Args:
        image: (C, ...).

    Returns:
        Booleans of the same shape.
    """
    return image != 0 if image.any() else image == 0


def labels_to_regions(labels: torch.Tensor, codes: Sequence[int]) -> torch.Tensor:
    """Label map (1, ...) → TC, WT, ET (3, ...) bool; ``codes`` of core, oedema, enhancing."""
    core, oedema, enhancing = ((labels == code)[0] for code in codes)
    tumour_core = core | enhancing
    return torch.stack([tumour_core, tumour_core | oedema, enhancing])


def regions_to_labels(regions: torch.Tensor, codes: Sequence[int]) -> torch.Tensor:
    """TC, WT, ET (3, ...) → label map (1, ...) uint8; ``codes`` of core, oedema, enhancing."""
    labels = torch.zeros_like(regions[:1], dtype=torch.uint8)
    core, oedema, enhancing = codes
    # From the outermost region to the innermost: the later one wins.
    for channel, code in ((1, oedema), (0, core), (2, enhancing)):
        labels[0][regions[channel] > 0.5] = code
    return labels


def nest_regions(regions: torch.Tensor) -> torch.Tensor:
    """TC, WT, ET (3, ...) with ET inside TC and TC inside WT; bool."""
    core, whole, enhancing = regions > 0.5
    core = core | enhancing
    return torch.stack([core, whole | core, enhancing])


def shift_foreground(image: torch.Tensor, offset: float) -> torch.Tensor:
    """Image (C, ...) plus ``offset`` wherever any channel is not exactly 0."""
    foreground = (image != 0).any(dim=0, keepdim=True)
    return torch.where(foreground, image + offset, image)


def _plain(array: NdarrayOrTensor) -> torch.Tensor:
    """The values alone: meta goes back on once, at the end."""
    return convert_to_tensor(array, track_meta=False)


def _label_codes(codes: Mapping[str, int]) -> list[int]:
    try:
        return Layout("", codes=codes).label_codes
    except KeyError as error:
        raise ValueError(f"codes must name necrosis, oedema and enhancing, got {codes}") from error


def _expect_channels(key: Hashable, array: NdarrayOrTensor, channels: int) -> None:
    if array.shape[0] != channels:
        raise ValueError(f"{key!r} must have {channels} channel(s), got shape {tuple(array.shape)}")
