"""A bundle's folder as the checks see it, and what they report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mod_components.release.vendor import vendored_name

__all__ = ["Bundle", "Problem", "strings"]

VENDORED = re.compile(r"mod_components_\d\w*")
TEXTS = {"", ".json", ".md", ".txt", ".conf", ".py", ".yml", ".yaml"}
LARGEST_TEXT = 25 * 10**6
KEPT_AT_ROOT = (".git", ".cache")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a bundle.

    Attributes:
        kind: short name of the kind of problem, the same in every version.
        file: path inside the bundle, or the archive's name.
        message: what is wrong, and behind a semicolon the mend.
    """

    kind: str
    file: str
    message: str

    def __str__(self) -> str:
        return " ".join(f"{self.file}: {self.message}".split())  # one line, whatever a name holds


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder.

    Args:
        folder: the folder, named as the bundle.
        packed: it came out of a packed bundle, which is complete: with weights, and with the
            modules that its configs name.
    """

    folder: Path
    packed: bool = False
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def entries(self) -> dict[str, os.stat_result]:
        """Everything in the folder but folders, by path with "/", sorted; links not followed.

        Of an unpacked one what git and Hugging Face keep at its root is left out.
        """
        found = {}
        for folder, folders, files in os.walk(self.folder):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in [*files, *links]:
                path = Path(folder, name)
                relative = path.relative_to(self.folder)
                if self.packed or relative.parts[0] not in KEPT_AT_ROOT:
                    found[relative.as_posix()] = path.lstat()
        return dict(sorted(found.items()))

    @cached_property
    def packages(self) -> list[str]:
        """Names of all vendored packages, this release's first; a sound bundle has one at most."""
        tops = {path.partition("/")[0] for path in self.entries if "/" in path}
        names = sorted(name for name in tops if VENDORED.fullmatch(name))
        return sorted(names, key=lambda name: name != vendored_name())

    @property
    def package(self) -> str:
        """Name of the vendored package; empty without one."""
        return self.packages[0] if self.packages else ""

    @cached_property
    def texts(self) -> dict[str, str]:
        """Contents of all text files by path; what can't be decoded is in ``unreadable``."""
        found = {}
        for path, facts in self.entries.items():
            file = self.folder / path
            if file.suffix.lower() not in TEXTS or facts.st_size > LARGEST_TEXT:
                continue
            if file.is_file() and not file.is_symlink():
                try:
                    found[path] = file.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError) as error:
                    self.unreadable[path] = str(error)
        return found

    @cached_property
    def documents(self) -> dict[str, Any]:
        """Contents of all JSON files by path; what is not JSON is in ``unreadable``."""
        found = {}
        for path, text in self.texts.items():
            if path.lower().endswith(".json"):
                try:
                    found[path] = json.loads(
                        text, object_pairs_hook=_without_duplicates, parse_constant=_refuse
                    )
                except (ValueError, RecursionError) as error:
                    self.unreadable[path] = str(error)
        return found

    def object(self, path: str) -> dict[str, Any]:
        """The object in a JSON file; empty where there is none, which another check reports."""
        document = self.documents.get(path)
        return document if isinstance(document, dict) else {}


def strings(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a JSON document, with their ids as MONAI writes them; keys as well.

    Args:
        node: the document or a part of it.
        name: the id of that part.
    """
    if isinstance(node, str):
        yield name, node
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    for key, child in children:
        inner = f"{name}#{key}" if name else str(key)
        if isinstance(key, str):
            yield inner, key
        yield from strings(child, inner)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
