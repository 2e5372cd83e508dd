"""Prepared cases kept in memory or on disk, so that no epoch prepares them again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import shutil
import time
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import monai
import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Transform, reset_ops_id
from monai.transforms.traits import RandomizableTrait
from monai.utils import TraceKeys

from mod_components.data.listed import FindModalitiesd
from mod_components.errors import DataError
from mod_components.files import file_digest

__all__ = ["CachedCases", "KeptCases", "describe"]

logger = logging.getLogger("mod_components.data")

_FORMAT = 1  # of an entry
_MARKER = "transforms.json"
# What MONAI's transforms and NibabelReader note in themselves when they are used
_STATE = ("_tracing", "filenames")
# A training has two chains of transforms, or three with unlabelled scans.
_FOLDERS = 8
# A temporary file this old belongs to a run that was killed.
_STALE_SECONDS = 3600
_reconstruct = np.zeros(0).__reduce__()[0]
# What a header's fields in MetaTensors need besides what MONAI declares safe; none runs code.
_SAFE: list[Any] = [_reconstruct, np.ndarray, np.dtype, TraceKeys]
_SAFE += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]


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
        self._write(self.folder / _MARKER, lambda file: file.write(text.encode()))
        self._clear()
        entries = sum(1 for _ in self.folder.glob("*.pt"))
        logger.info("prepared cases are kept in %s (%d there)", self.folder, entries)

    def get(self, case: Mapping[Any, Any], make: Callable[[], Any]) -> Any:
        """The prepared case, from disk or else made and put there.

        Args:
            case: the case with its paths.
            make: prepares it.

        Raises:
            DataError: if the entry cannot be written or read.
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
            self._write(path, lambda file: torch.save(entry, file))
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
            with file, torch.serialization.safe_globals(_SAFE):
                entry = torch.load(file, weights_only=True)
            return entry["item"] if entry["stamps"] == stamps else None
        except Exception as error:  # damaged bytes can lead to any
            why = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
            logger.warning("%s is damaged (%s): the case is prepared anew", path, why)
            return None

    def _write(self, path: Path, write: Callable[[BinaryIO], Any]) -> None:
        """Write a file that is whole or not there, whoever else writes it now."""
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # the latter from torch.save
            raise self._unusable("written to", error) from error
        finally:
            with contextlib.suppress(OSError):  # it has its name, or there is no such folder
                temporary.unlink()

    def _unusable(self, how: str, error: BaseException) -> DataError:
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        free = f", {shutil.disk_usage(place).free / 1e9:.1f} GB free" if place.is_dir() else ""
        cause = error if isinstance(error, OSError) else error.__context__ or error
        why = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
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


def describe(value: Any) -> Any:
    """What a transform is and does, in plain values: equal in every process.

    Args:
        value: a transform, or what it holds.

    Returns:
        Lists, strings and numbers. What cannot be described gives another text in each process.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return sorted(([str(key), describe(entry)] for key, entry in value.items()), key=str)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, *map(describe, (value.__code__, value.__defaults__, cells))]
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), list(value.co_names), describe(value.co_consts)]
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, (type, types.MethodType)) or not hasattr(value, "__dict__"):
        return repr(value)
    held = {key: entry for key, entry in vars(value).items() if key not in _STATE}
    return [type(value).__name__, describe(held)]


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
