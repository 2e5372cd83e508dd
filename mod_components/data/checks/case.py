"""One case as the checks see it: its files, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mod_components.data.checks.problem import ERROR, WARNING, Problem
from mod_components.data.checks.volume import Volume, VolumeError
from mod_components.data.records import CHANNELS, CaseRecord, Layout

# Above this, the sum of the squares of 512³ voxels is beyond what a 32-bit float can hold.
_LARGEST = 1e15


@dataclass
class Scan:
    """The voxels of one modality (D, H, W), and what several checks ask of them.

    Attributes:
        channel: one of ``CHANNELS``.
        path: its file; for a 4D file the same for all channels.
        voxels: (D, H, W), any integer or floating type.
    """

    channel: str
    path: str
    voxels: np.ndarray

    @cached_property
    def finite(self) -> bool:
        return self.voxels.dtype.kind != "f" or bool(np.isfinite(self.voxels).all())

    @cached_property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return float(self.voxels.min()), float(self.voxels.max())

    @property
    def overflows(self) -> bool:
        """Whether a finite value is beyond any intensity, so that 32-bit floats can't bear it."""
        return max(map(abs, self.range)) > _LARGEST

    @cached_property
    def foreground(self) -> np.ndarray:
        """Where the image is not exactly 0, (D, H, W)."""
        return self.voxels != 0

    @cached_property
    def grey(self) -> np.ndarray:
        """The foreground's values, (n,)."""
        # files are read in Fortran's order, along which this is several times faster
        return self.voxels.T[self.foreground.T]

    @property
    def sound(self) -> bool:
        """Whether its values are finite, bearable and differ, so that statistics mean something."""
        return self.finite and not self.overflows and self.range[0] < self.range[1]

    @cached_property
    def digest(self) -> str:
        """The same for two images of the same shape and foreground values, whatever their type."""
        key = hashlib.blake2b(str(self.voxels.shape).encode(), digest_size=16)
        key.update(self.grey.astype(np.float32).tobytes())
        return key.hexdigest()


class Case:
    """What the checks look at: one record with its headers and, when asked for, its voxels."""

    def __init__(self, record: CaseRecord, layout: Layout) -> None:
        self.record = record
        self.layout = layout

    @cached_property
    def images(self) -> list[Volume]:
        return [Volume(path) for path in self.record.images]

    @cached_property
    def label(self) -> Volume | None:
        return Volume(self.record.label) if self.record.label else None

    @property
    def volumes(self) -> list[Volume]:
        return [*self.images, *([self.label] if self.label else [])]

    @property
    def readable(self) -> list[Volume]:
        return [volume for volume in self.volumes if not volume.error]

    @cached_property
    def label_voxels(self) -> np.ndarray | VolumeError | None:
        """The label map, why it can't be read, or None where there is no good 3D label file.

        Fractions are 32-bit floats, as they are loaded: a scaled header may give 1.00000001 for 1.
        """
        if self.label is None or self.label.error or len(self.label.shape) != 3:
            return None
        try:
            voxels = self.label.voxels()
            return voxels.astype(np.float32, copy=False) if voxels.dtype.kind == "f" else voxels
        except VolumeError as error:
            return error

    @cached_property
    def label_counts(self) -> dict[int, int]:
        """Voxels of each known code, 0 (background) among them; empty without a label map."""
        voxels = self.label_voxels
        if not isinstance(voxels, np.ndarray):
            return {}
        codes = [0, *sorted(self.layout.label_codes)]
        return {code: int(np.count_nonzero(voxels == code)) for code in codes}

    @cached_property
    def _read(self) -> tuple[list[Scan], list[tuple[Volume, VolumeError]]]:
        scans, failures = [], []
        names = [name for name in CHANNELS if name not in self.record.missing]
        for index, volume in enumerate(self.images):
            if volume.error or len(volume.shape) != (4 if self.record.stacked else 3):
                continue
            try:
                voxels = volume.voxels()
            except VolumeError as error:
                failures.append((volume, error))
                continue
            if not self.record.stacked:
                scans.append(Scan(names[index], volume.path, voxels))
            elif volume.shape[3] == len(CHANNELS):
                scans += [
                    Scan(name, volume.path, voxels[..., channel])
                    for name, channel in zip(CHANNELS, self.layout.channel_order, strict=True)
                ]
        return scans, failures

    @property
    def scans(self) -> list[Scan]:
        """The modalities that can be read."""
        return self._read[0]

    @property
    def failures(self) -> list[tuple[Volume, VolumeError]]:
        """Image files whose voxels can't be read, and why."""
        return self._read[1]

    @cached_property
    def sound_scans(self) -> list[Scan]:
        """Those of the case's most common shape that statistics can be made of."""
        scans = [scan for scan in self.scans if scan.sound]
        shapes = [scan.voxels.shape for scan in scans]
        common = max(shapes, key=shapes.count) if shapes else ()
        return [scan for scan in scans if scan.voxels.shape == common]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of each sound modality, and of the tumour's voxels under "label"."""
        found = {scan.channel: scan.digest for scan in self.sound_scans}
        voxels = self.label_voxels
        if isinstance(voxels, np.ndarray) and self.label_counts.get(0, 0) < voxels.size:
            found["label"] = _digest_of_label(voxels)
        return found

    def error(self, kind: str, file: str, message: str, mend: str) -> Problem:
        return Problem(self.record.case, file, ERROR, message, mend, kind)

    def warning(self, kind: str, file: str, message: str, mend: str) -> Problem:
        return Problem(self.record.case, file, WARNING, message, mend, kind)


def _digest_of_label(voxels: np.ndarray) -> str:
    """The same for the same codes in the same places, whatever the type they are stored in."""
    where = np.flatnonzero(voxels.ravel(order="F"))
    key = hashlib.blake2b(str(voxels.shape).encode(), digest_size=16)
    key.update(where.astype(np.int64).tobytes())
    key.update(voxels.ravel(order="F")[where].astype(np.float32).tobytes())
    return key.hexdigest()


Check = Callable[[Case], Iterator[Problem]]
