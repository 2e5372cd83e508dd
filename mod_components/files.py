"""Files that are either whole or not there, whatever happens to the process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mod_components.errors import DataError, DiskError, disk_error

__all__ = [
    "DATALIST",
    "POSTPROCESSING",
    "copy_atomically",
    "file_digest",
    "read_object",
    "refuse_unwritable",
    "save_json",
    "save_tensors",
    "write_atomically",
]


DATALIST = "datalist.json"
"""Beside a checkpoint: which case trains and which is held out."""

POSTPROCESSING = "postprocessing.json"
"""Beside a checkpoint: thresholds of the post-processing."""


def read_object(path: Path, what: str = "", mend: str = "") -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Args:
        path: the file.
        what: what it is, for the error's words.
        mend: what to do about one that can't be read.

    Raises:
        DataError: if it is missing, no JSON or holds something else.
    """
    name, end = f"{what} {path}".strip(), f" {mend}" if mend else ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{name} can't be read as JSON ({error}).{end}") from error
    if not isinstance(content, dict):
        raise DataError(f"{name} holds a {type(content).__name__}, not an object.{end}")
    return content


def refuse_unwritable(folder: str | os.PathLike[str], option: str) -> None:
    """Find out now, not after hours, whether files can be made in a folder; leaves nothing behind.

    Args:
        folder: the folder; where it is not there, in the one in which it would be made.
        option: name of the setting that names another one.

    Raises:
        DiskError: if it can't be made or written.
    """
    there = Path(os.path.abspath(folder))
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DiskError(
            f"{folder} can't be written ({error.strerror}): give another folder with --{option}, "
            "or make room there."
        ) from error


def write_atomically(
    path: Path, write: Callable[[BinaryIO], Any], temporary: Path | None = None
) -> None:
    """Write a file under a temporary name in the same folder, sync it to disk and rename it.

    After an error the part written is removed, and the file of before stays.

    Args:
        path: the file to make or replace.
        write: called with the open file.
        temporary: the temporary name, where several processes may write the file at once. Else it
            is fixed, so that a killed run leaves at most one such file behind, which the next save
            replaces.

    Raises:
        DiskError: when the disk is full or does not take the file for another reason.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # its space is what the error's message may need
            temporary.unlink()
        if (found := disk_error(error, path)) is None:
            raise
        raise found from error


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file, so that the target is whole or as before.

    Args:
        source: the file.
        target: path of the copy.

    Raises:
        DiskError: see :func:`write_atomically`.
    """
    with open(source, "rb") as original:
        write_atomically(target, lambda file: shutil.copyfileobj(original, file))


def file_digest(path: str | os.PathLike[str]) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256; empty where there is no such file."""
    digest = hashlib.sha256()
    if not Path(path).is_file():
        return ""
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()[:16]


def save_tensors(content: Any, path: Path) -> None:
    """Save tensors and plain numbers with ``torch.save``, atomically."""
    write_atomically(path, lambda file: torch.save(content, file))


def save_json(content: Any, path: Path) -> None:
    """Save as JSON of indent 4, atomically."""
    text = json.dumps(content, indent=4, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
