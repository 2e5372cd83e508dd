"""Files that are either whole or not there, whatever happens to the process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

__all__ = [
    "DATALIST",
    "POSTPROCESSING",
    "file_digest",
    "save_json",
    "save_tensors",
    "write_atomically",
]


DATALIST = "datalist.json"
"""Beside a checkpoint: which case trains and which is held out."""

POSTPROCESSING = "postprocessing.json"
"""Beside a checkpoint: thresholds of the post-processing."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name in the same folder, sync it to disk and rename it.

    Args:
        path: the file to make or replace. Its temporary name is fixed, so that a killed run leaves
            at most one such file behind, which the next save replaces.
        write: called with the open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
