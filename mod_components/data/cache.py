"""Prepared cases kept in memory or on disk, so that no epoch prepares them again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import monai
import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor
from monai.data.meta_obj import MetaObj
from monai.transforms import Compose, Transform, reset_ops_id
from monai.transforms.traits import RandomizableTrait
from monai.utils import MetaKeys, SpaceKeys, TraceKeys

from mod_components.data.describe import describe
from mod_components.data.listed import FindModalitiesd
from mod_components.errors import DataError, causes
from mod_components.files import file_digest, write_atomically

__all__ = ["CachedCases", "KeptCases"]

logger = logging.getLogger("mod_components.data")

_FORMAT = 1  # of an entry
_MARKER = "transforms.json"
# A training has two chains of transforms, or three with unlabelled scans.
_FOLDERS = 8
# A temporary file this old belongs to a run that was killed.
_STALE_SECONDS = 3600
# What MetaTensors and the fields of a header are made of; none runs code. MONAI 1.5 declares less
# of its own safe than 1.6, and a context manager for this came with torch 2.5 only.
_SAFE: list[Any] = [MetaTensor, MetaObj, MetaKeys, SpaceKeys, TraceKeys, type(Path())]
_SAFE += [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0], np.ndarray, np.dtype]
_SAFE += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]


def _load(file: IO[bytes]) -> Any:
    """Read an entry; what its classes may be is declared for this call alone, where torch can."""
    if not hasattr(torch.serialization, "safe_globals"):
        torch.serialization.add_safe_globals(_SAFE)
        return torch.load(file, weights_only=True)
    with torch.serialization.safe_globals(_SAFE):
        return torch.load(file, weights_only=True)


class CachedCases(CacheDataset):
    """MONAI's ``CacheDataset``, which can keep prepared cases on disk too.

    What is kept is what the transforms before the first random one give, bit for bit: items are
    the same with a cache and without. MONAI's ``PersistentDataset`` writes across file systems,
    stops at most damaged entries and does not see that a file or a transform's parameter changed.

    Args:
        data: cases, dictionaries with paths.
        transform: transforms of a case.
        cache_rate: share of the cases that is kept in memory, filled at once.
        cache_dir: folder of prepared cases (:class:`KeptCases`), filled as they are asked for;
            empty for none.
        settings: of ``CacheDataset``. It loads with one thread, as MONAI's ``NibabelReader`` mixes
            up the files of several.

    Raises:
        DataError: if ``cache_dir`` cannot be written to.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Compose,
        cache_rate: float = 0.0,
        cache_dir: str | os.PathLike[str] = "",
        **settings: Any,
    ) -> None:
        first = transform.get_index_of_first(_ends_what_is_kept)
        self.first_random: int | None = first
        self.kept: KeptCases | None = None
        if cache_dir and data:
            self.kept = KeptCases(cache_dir, transform.transforms[:first])
        elif data and not cache_rate:
            _tell_of_caches()
        super().__init__(data, transform, cache_rate=cache_rate, **settings)

    def _load_cache_item(self, idx: int) -> Any:
        make = functools.partial(super()._load_cache_item, idx)
        return make() if self.kept is None else self.kept.get(self.data[idx], make)

    def _transform(self, index: int) -> Any:
        if self.kept is None or index % len(self) < self.cache_num:
            return super()._transform(index)
        item = self._load_cache_item(index)
        if self.first_random is None:
            return item
        return self.transform(item, start=self.first_random)


class KeptCases:
    """Prepared cases on disk, one file each, in a folder for each chain of transforms.

    An entry is used only for the files that it was made from, as their paths, sizes and times of
    change tell; else it is made anew in its place. The folder's name stands for the transforms'
    parameters and source code, and for the versions of MONAI, torch and numpy; of such folders the
    eight that were used last are left. Any number of processes may read and write at once. What is
    read cannot run code.

    Args:
        cache_dir: folder of all such folders.
        transforms: what prepares a case, without anything random.

    Attributes:
        folder: where the entries lie.

    Raises:
        DataError: if the folder cannot be written to.
    """

    def __init__(self, cache_dir: str | os.PathLike[str], transforms: Sequence[Any]) -> None:
        root = Path(os.path.abspath(Path(cache_dir).expanduser()))
        versions = [monai.__version__, torch.__version__, np.__version__]
        sources = sorted({_source(transform) for transform in transforms})
        content = [_FORMAT, versions, sources, describe(list(transforms))]
        text = json.dumps(content, indent=1)
        self.folder = root / _digest(text)
        self._text = text.encode()
        self._checked = False
        with self._told("written to"):
            self._mark()
        self._clear()
        entries = sum(1 for _ in self.folder.glob("*.pt"))
        logger.info("prepared cases are kept in %s (%d there)", self.folder, entries)

    def get(self, case: Mapping[Any, Any], make: Callable[[], Any]) -> Any:
        """The prepared case, from disk or else made and put there.

        Args:
            case: the case with its paths.
            make: prepares it.

        Raises:
            DataError: if the entry cannot be written or read, or holds more than can be read back
                without running code.
        """
        found = FindModalitiesd("image", allow_missing_keys=True)(case)  # all files count
        name = json.dumps(found, sort_keys=True, default=str)
        path = self.folder / f"{_digest(name)}.pt"
        stamps = json.dumps(_stamps(list(found.values())))
        item = self._read(path, stamps)
        if item is None:
            item = make()
            reset_ops_id(item)  # they are addresses of this process
            entry = {"stamps": stamps, "item": _compact(item)}
            self._check(entry)
            with self._told("written to"):
                self._write(path, entry)
        return item

    def _read(self, path: Path, stamps: str) -> Any:
        """An entry's item; None where there is none for these files."""
        try:
            file = open(path, "rb")  # noqa: SIM115  (closed below)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", error) from error
        try:
            with file:
                entry = _load(file)
            return entry["item"] if entry["stamps"] == stamps else None
        except Exception as error:  # damaged bytes can lead to any
            why = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
            logger.warning("%s is damaged (%s): the case is prepared anew", path, why)
            return None

    def _check(self, entry: Mapping[str, Any]) -> None:
        """Refuse an item that would be called damaged whenever it is read: the first shows it."""
        if self._checked:
            return
        try:
            file = io.BytesIO()
            torch.save(entry, file)
            file.seek(0)
            _load(file)
        except Exception as error:  # pickle has many
            named = re.search(r"GLOBAL (\S+)", str(error))
            why = named[1] if named else str(error).partition("\n")[0]
            raise DataError(
                f"cache_dir {self.folder.parent}: a prepared case holds what cannot be stored and "
                f"read back without running code ({why}). Leave out --cache_dir, or let the "
                "transforms before the random ones give tensors, arrays, numbers and text alone."
            ) from error
        self._checked = True

    def _write(self, path: Path, entry: Mapping[str, Any]) -> None:
        for last in (False, True):
            try:
                write_atomically(path, lambda file: torch.save(entry, file), self._temporary())
                os.utime(self.folder / _MARKER)  # the folder is in use
                return
            except FileNotFoundError:  # another run has just cleared it away
                if last:
                    raise
                self._mark()

    def _mark(self) -> None:
        marker = self.folder / _MARKER
        write_atomically(marker, lambda file: file.write(self._text), self._temporary())

    def _temporary(self) -> Path:
        return self.folder / f".{uuid.uuid4().hex}.tmp"

    @contextlib.contextmanager
    def _told(self, how: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # the latter from torch.save
            raise self._unusable(how, error) from error

    def _unusable(self, how: str, error: BaseException) -> DataError:
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        free = f", {shutil.disk_usage(place).free / 1e9:.1f} GB free" if place.is_dir() else ""
        why = next((e.strerror for e in causes(error) if isinstance(e, OSError) and e.strerror), "")
        why = why or str(error).partition("\n")[0]
        return DataError(
            f"cache_dir {self.folder.parent} cannot be {how} ({why}{free}): make room there, give "
            "another folder, or leave out --cache_dir."
        )

    def _clear(self) -> None:
        """Remove what killed runs left, and the folders of transforms long unused."""
        for leftover in self.folder.glob(".*.tmp"):
            try:
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()
            except FileNotFoundError:  # another run was first
                continue
        used = [
            (_mtime(marker), marker.parent) for marker in self.folder.parent.glob(f"*/{_MARKER}")
        ]
        for _, folder in sorted(used)[:-_FOLDERS]:
            logger.info("removing %s: %d other chains were used since", folder, _FOLDERS)
            shutil.rmtree(folder, ignore_errors=True)


def _ends_what_is_kept(transform: Any) -> bool:
    """As in ``CacheDataset``: the first random transform, or the first that is not MONAI's."""
    return isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform)


def _source(transform: Any) -> str:
    """Digest of the file that a transform's class stands in; MONAI's is told by its version."""
    module = type(transform).__module__
    if module.startswith("monai."):
        return ""
    try:
        return file_digest(inspect.getfile(type(transform)))
    except (OSError, TypeError):  # from a shell or a config
        return module


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamps(value: Any) -> list[Any]:
    """Path, size in bytes and time of change in ns of each file named in a case."""
    if isinstance(value, (list, tuple)):
        return [stamp for entry in value for stamp in _stamps(entry)]
    if not isinstance(value, (str, os.PathLike)) or not os.path.isfile(value):
        return []
    status = os.stat(value)
    return [[os.path.abspath(value), status.st_size, status.st_mtime_ns]]


def _compact(item: Any) -> Any:
    """Tensors with storage of their own: a saved crop would take the whole scan along."""
    if isinstance(item, Mapping):
        return {key: _compact(value) for key, value in item.items()}
    if isinstance(item, torch.Tensor):
        return item.clone(memory_format=torch.contiguous_format)
    return item


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@functools.cache
def _tell_of_caches() -> None:
    logger.info(
        "each epoch reads and prepares all cases anew: --cache_dir FOLDER keeps prepared cases on "
        "disk, --cache_rate 1.0 in memory."
    )
