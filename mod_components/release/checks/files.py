"""Which files a bundle has, lacks, and should not have."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from monai.utils import optional_import

from mod_components.release.checks.bundle import VENDORED, Bundle, Problem

__all__ = ["check_files", "large_files"]

REQUIRED = {
    "LICENSE": "add the licence's text",
    "configs/metadata.json": "render the bundle anew",
    "configs/inference.json": "render the bundle anew",
    "configs/train.json": "render the bundle anew",
    "configs/logging.conf": "render the bundle anew",
    "docs/README.md": "render the bundle anew",
    "docs/data_license.txt": "name the data sets and their terms in it",
}
WEIGHTS = "models/model.pt"
LARGE_FILES = ("large_files.yml", "large_files.yaml", "large_files.json")
LARGEST = 25 * 10**6
KEYS = ("path", "url", "hash_val", "hash_type")
HASHES = {"sha1": 40, "md5": 32, "sha256": 64, "sha512": 128}
LEFTOVERS = {
    r"__pycache__|.*\.py[co]|\.mypy_cache|\.ruff_cache|\.pytest_cache": "a cache",
    r"\.DS_Store|Thumbs\.db|desktop\.ini|\.ipynb_checkpoints|\.idea|\.vscode": "a program's own",
    r"\.git|\.gitignore|\.gitattributes": "of version control",
    r"last\.pt|previous": "the state of a training, which no user of the network needs",
    r"eval|tensorboard|events\.out\.tfevents.*": "the output of a training or an evaluation",
    r".*\.(tmp|bak|swp|orig)|.*~": "a temporary file",
}
AT_ROOT = {"LICENSE", "README.md", ".gitattributes", *LARGE_FILES}  # two are Hugging Face's
EXPECTED = {
    "configs": r"\w+\.(json|conf)",
    "docs": r"[\w.-]+\.(md|txt|png|jpe?g|svg|gif)",
    "models": r"(model|model_ema)\.pt|(model|model_trt)\.ts|model\.onnx|\w+\.json",
}


def check_files(bundle: Bundle) -> list[Problem]:
    """Find missing, superfluous and too large files, and links; whatever is in them.

    Args:
        bundle: the bundle.
    """
    problems = [
        Problem("missing", path, f"is missing; {mend}")
        for path, mend in REQUIRED.items()
        if path not in bundle.entries
    ]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", bundle.folder.name) or (
        "_v" in bundle.folder.name
    ):
        message = "is no plain name without '_v', which MONAI needs; rename the bundle's folder"
        problems.append(Problem("name", bundle.folder.name, message))
    problems += _superfluous(bundle)
    for path, facts in bundle.entries.items():
        if not stat.S_ISREG(facts.st_mode):
            message = "is a link or no plain file; put the file itself there"
            problems.append(Problem("link", path, message))
    listed, wrong = large_files(bundle)
    problems += wrong
    for path, facts in bundle.entries.items():
        if facts.st_size > LARGEST and not path.startswith("models/") and path not in listed:
            message = f"has {facts.st_size / 1e6:.0f} MB, 25 are allowed outside models/"
            problems.append(Problem("large-file", path, f"{message}; name it in {LARGE_FILES[0]}"))
    if bundle.packed and WEIGHTS not in bundle.entries and WEIGHTS not in listed:
        message = f"is missing; train first and pack then, or name it in {LARGE_FILES[0]}"
        problems.append(Problem("missing", WEIGHTS, message))
    return problems


def _superfluous(bundle: Bundle) -> Iterator[Problem]:
    """Leftovers, each folder of them once, and what has no place in a bundle."""
    reported: set[str] = set()
    for path in bundle.entries:
        if path in AT_ROOT:
            continue
        parts = path.split("/")
        for depth, part in enumerate(parts, 1):
            kind = next((k for pattern, k in LEFTOVERS.items() if re.fullmatch(pattern, part)), "")
            if kind:
                top = "/".join(parts[:depth])
                if top not in reported:
                    reported.add(top)
                    yield Problem("leftover", top, f"is {kind}; leave it out, as packing does")
                break
        else:
            if not _expected(parts):
                yield Problem("unexpected", path, "has no place in a bundle; leave it out")


def _expected(parts: list[str]) -> bool:
    top, name = parts[0], parts[-1]
    if VENDORED.fullmatch(top) and len(parts) > 1:
        return name.endswith(".py") or name == "py.typed"
    return top in EXPECTED and len(parts) == 2 and bool(re.fullmatch(EXPECTED[top], name))


def large_files(bundle: Bundle) -> tuple[set[str], list[Problem]]:
    """The files that are fetched from elsewhere.

    Args:
        bundle: the bundle.

    Returns:
        Their paths, and what is wrong with their list.
    """
    source = next((name for name in LARGE_FILES if name in bundle.texts), "")
    if not source:
        return set(), []
    try:
        rows = _rows(bundle, source)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        message = f"is no list 'large_files' ({error}); write it as the Model Zoo does, or as JSON"
        return set(), [Problem("large-files", source, message)]
    problems = [
        Problem("large-files", source, message)
        for row in rows
        for message in _row_problems(row, bundle.folder)
    ]
    return {str(row.get("path")) for row in rows}, problems


def _rows(bundle: Bundle, source: str) -> list[Mapping[str, Any]]:
    if source.endswith(".json"):
        document = bundle.object(source)
    else:
        yaml, found = optional_import("yaml")
        if not found:
            raise ImportError("reading YAML needs PyYAML: pip install pyyaml")
        try:
            document = yaml.safe_load(bundle.texts[source])
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    rows: list[Mapping[str, Any]] = [dict(row) for row in document["large_files"]]
    for key in KEYS:  # before any of them becomes a text: nested aliases of YAML grow without end
        if any(not isinstance(row.get(key, ""), str) for row in rows):
            raise ValueError(f"an entry's {key} is no text")
    return rows


def _row_problems(row: Mapping[str, Any], folder: Path) -> Iterator[str]:
    name = row.get("path") or row.get("url") or "an entry"
    if missing := [key for key in KEYS if not row.get(key)]:
        yield f"{name} lacks {', '.join(missing)}; give all of {', '.join(KEYS)}"
        return
    path, kind, value = str(row["path"]), str(row["hash_type"]).lower(), str(row["hash_val"])
    if PurePosixPath(path).is_absolute() or ".." in path.split("/") or re.search(r"[\\:]", path):
        yield f"{path!r} is no path inside the bundle; give one"
    elif not re.match(r"https?://", str(row["url"])):
        yield f"{path}: {row['url']!r} is no address; give one of https://"
    elif not re.fullmatch(rf"[0-9a-fA-F]{{{HASHES.get(kind, 0)}}}", value) or not value:
        yield f"{path}: {value!r} is no {kind}; give one of {', '.join(HASHES)}"
    elif (folder / path).is_file() and _digest(folder / path, kind) != value.lower():
        yield f"{path}: the file has another {kind} than {value}; correct hash_val or the file"


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
