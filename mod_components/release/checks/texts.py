"""What no text file of a bundle may hold: broken JSON, and paths of somebody's machine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from mod_components.release.checks.bundle import Bundle, Problem, strings

__all__ = ["check_texts"]

# a folder of a person or a machine, in whatever text; not a part of an address or another path
PERSONAL = re.compile(
    r"(?<![\w.:/~-])/(?:(?:home|Users|mnt|media|scratch|workspace)/\w[\w.-]*|root/|tmp/|var/|private/)"
    r"[\w./-]*|(?<!\w)[A-Za-z]:\\[\w\\.-]+"
)
# a value that is, or that ends in, an absolute path: "/data/x", "--dataset_dir=/data/x", "C:/x"
ABSOLUTE = re.compile(
    r"(?:^|[\s='\"(\[,;])((?:file:)?/+[\w.~-][^\s'\"]*|(?<!\w)[A-Za-z]:[\\/][^/][^\s'\"]*|\\\\\w[^\s'\"]*)"
)
# a literal of two parts or more: '/data/x' is a place, @bundle_root + '/models' adds to one
LITERAL = re.compile(r"(?:^|(?<=[\s(\[{,=+]))['\"](/[\w.-]+/[^'\"]*|[A-Za-z]:[\\/][^'\"]*)['\"]")
RELATIVE = "give it relative to the bundle"


def check_texts(bundle: Bundle) -> list[Problem]:
    """Find files that can't be read, JSON of another form, and absolute and personal paths.

    Args:
        bundle: the bundle.
    """
    problems = []
    documents = bundle.documents
    for path, error in bundle.unreadable.items():
        kind = "JSON" if path.endswith(".json") else "UTF-8 text"
        problems.append(Problem("json", path, f"is no valid {kind} ({error}); correct it"))
    for path, document in documents.items():
        if not _indented(bundle.texts[path], document):
            message = "is not indented by 4; write it with json.dump(..., indent=4)"
            problems.append(Problem("indent", path, message))
    for path, text in bundle.texts.items():
        if found := _machine_path(path, text, documents.get(path)):
            where, value = found
            shown = value if len(value) < 80 else f"{value[:77]}..."
            inside = f"{where}: " if where else ""
            message = f"{inside}{shown!r} is a path of one machine; {RELATIVE}"
            problems.append(Problem("path", path, message))
    return problems


def _indented(text: str, document: Any) -> bool:
    """Whether each line stands a multiple of 4 deep, and at most 4 deeper than the one before."""
    if not isinstance(document, (dict, list)) or not document:
        return True
    depths = [len(line) - len(line.lstrip(" ")) for line in text.splitlines() if line.strip()]
    steps = itertools.pairwise(depths)
    return (
        len(depths) > 2
        and depths[1] == 4
        and "\n\t" not in text
        and all(after % 4 == 0 and after - before <= 4 for before, after in steps)
    )


def _machine_path(path: str, text: str, document: Any) -> tuple[str, str] | None:
    """Id, and text, of the first path of a machine in a file."""
    for where, value in strings(document):
        if found := next(_paths(path, value), ""):
            return where, found
    if document is None and (match := PERSONAL.search(text)):
        line = text[: match.start()].count("\n") + 1
        return f"line {line}", match[0]
    return None


def _paths(path: str, value: str) -> Iterator[str]:
    """Paths of a machine in one string of a JSON file.

    Expressions of configs join paths of pieces that start with "/" ('/models'), and test names
    against patterns; in them only quoted places of two parts count, and personal folders.
    """
    if value.startswith("$"):
        yield from (match[1] for match in LITERAL.finditer(value))
        yield from (match[0] for match in PERSONAL.finditer(value))
    else:
        yield from (match[1] for match in ABSOLUTE.finditer(value))
        yield from (match[0] for match in PERSONAL.finditer(value))
