"""Download, check and unpack a packed bundle safely.

The standard library is all it needs, so that this file also runs alone where neither MONAI nor
this project is installed: ``python get_bundle.py URL_OR_FILE --sha1 HEX``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import unicodedata
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Archive",
    "ArchiveError",
    "Finding",
    "get_bundle",
    "is_plain_name",
    "read_archive",
    "unpack",
]

MAX_BYTES = 4 * 10**9
MAX_RATIO = 100
MAX_ENTRIES = 10_000
MAX_DIRECTORY = 2**22
SMALL = 10**7  # below this a high ratio does no harm
PIECE = 2**20
MEND = "get the bundle anew from its publisher"
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)
# sizes beyond 4 GB; times, owners and access lists of common programs
EXTRA = {0x0001, 0x000A, 0x4453, 0x5455, 0x5855, 0x7875}
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a version or method that zipfile does not know
    RuntimeError,  # an encrypted entry
    ValueError,  # offsets beyond the file, names that can't be decoded
)


class ArchiveError(ValueError):
    """A packed bundle that is not safe or not whole; the message names file, cause and mend."""


class Finding(NamedTuple):
    """Something wrong with an archive.

    Attributes:
        entry: name of the entry, as Python writes it so that it is one line; empty for the whole.
        message: what is wrong, and the mend.
    """

    entry: str
    message: str

    def __str__(self) -> str:
        return f"entry {self.entry} {self.message}" if self.entry else self.message


class Archive(NamedTuple):
    """What the directory of a zip says.

    Attributes:
        name: its one top folder; empty where there is none or more than one.
        entries: its entries, in order.
        findings: what is wrong; unpack nothing unless it is empty.
    """

    name: str
    entries: list[zipfile.ZipInfo]
    findings: list[Finding]


class _File(io.FileIO):
    """A file that refuses to hand over a huge directory, which zipfile reads in one piece."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {MAX_DIRECTORY} bytes")
        return super().read(-1 if size is None else size)


def read_archive(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Archive:
    """Read a packed bundle's directory and find everything unsafe in it; unpacks nothing.

    Args:
        path: a zip file, named ``<name>.zip`` or ``<name>_v<version>.zip``.
        max_bytes: most bytes that all entries together may take when unpacked.

    Returns:
        Its top folder, entries and findings. A sound directory can still lie about the contents:
        :func:`unpack` finds that while it reads them.
    """
    try:
        with _File(os.fspath(path)) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except UNREADABLE as error:
        return Archive("", [], [Finding("", f"is no readable zip ({error}); {MEND}")])
    except OSError as error:
        reason = error.strerror or error
        return Archive("", [], [Finding("", f"can't be read ({reason}); give an existing file")])
    if not entries or len(entries) > MAX_ENTRIES:
        problem = f"has {len(entries)} entries, and 1 to {MAX_ENTRIES} are allowed; {MEND}"
        return Archive("", [], [Finding("", problem)])
    findings = [
        Finding(ascii(entry.orig_filename), f"{problem}; {MEND}")
        for entry in entries
        for problem in _unsafe(entry)
    ]
    findings += _collisions(entries)
    name, problems = _top_folder(entries, Path(path).stem)
    findings += problems + _too_large(entries, max_bytes)
    if min(entry.header_offset for entry in entries):
        findings.append(Finding("", f"holds something before its first entry; {MEND}"))
    return Archive(name, entries, findings)


def unpack(path: str | Path, bundle_dir: str | Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Check a packed bundle and unpack it below a folder, wholly or not at all.

    Args:
        path: a zip file.
        bundle_dir: folder that gets the bundle's folder; made where it does not exist.
        max_bytes: as for :func:`read_archive`.

    Returns:
        The bundle's folder.

    Raises:
        ArchiveError: when the archive is unsafe or damaged, or the folder exists already. Nothing
            is left then.
    """
    with _workspace(Path(bundle_dir)) as work:
        return _unpack(Path(path), Path(bundle_dir), work, max_bytes)


def get_bundle(
    source: str,
    bundle_dir: str | Path = ".",
    *,
    sha1: str = "",
    model_info: str = "",
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Fetch a packed bundle, check its checksum, and unpack it safely.

    Args:
        source: a path, or a ``file://``, ``http://`` or ``https://`` address, of a zip.
        bundle_dir: as for :func:`unpack`.
        sha1: the SHA-1 that the zip must have, 40 hexadecimal digits.
        model_info: path or address of a ``model_info.json`` that has it.
        max_bytes: as for :func:`read_archive`; a download stops there, too.

    Returns:
        The bundle's folder.

    Raises:
        ArchiveError: as :func:`unpack`, and when it can't be fetched or the checksum is wrong.
    """
    with _workspace(Path(bundle_dir)) as work:
        path = _fetch(source, work, max_bytes)
        if model_info:
            sha1 = _published_sha1(_fetch(model_info, work, PIECE), path.stem, model_info)
        if sha1 and (found := _sha1(path)) != sha1.strip().lower():
            raise ArchiveError(
                f"{source}: its SHA-1 is {found}, not {sha1}, so that it is damaged or another "
                f"file; {MEND}"
            )
        return _unpack(path, Path(bundle_dir), work, max_bytes)


def _unsafe(entry: zipfile.ZipInfo) -> Iterator[str]:
    """What is wrong with one entry, seen alone."""
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ":" in name:
        yield "is an absolute path or names a drive"
    elif ".." in parts:
        yield "leads out of the folder"
    elif "\\" in name or not name.isprintable():
        yield "has a backslash or a control character"
    elif any(p in ("", ".") or p != p.rstrip(". ") or RESERVED.fullmatch(p) for p in parts):
        yield "is no plain name on every system"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        yield "is a symbolic link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield "is neither a file nor a folder"
    elif (kind == stat.S_IFDIR and not name.endswith("/")) or (
        name.endswith("/") and (kind == stat.S_IFREG or entry.file_size)
    ):
        yield "is a file and a folder at once"
    if entry.comment or not _known_extra(entry.extra):
        yield (
            "has a comment or an unknown field, in which other entries can hide (a bundle of your "
            "own: zip it again with 'python -m mod_components pack')"
        )
    if entry.flag_bits & 0x2041:
        yield "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield "is compressed by another method than deflate"


def _known_extra(extra: bytes) -> bool:
    """Whether the extra field holds times, owners and long sizes alone, whole."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind not in EXTRA or len(extra) < 4 + length:
            return False
        extra = extra[4 + length :]
    return not extra


def _collisions(entries: Sequence[zipfile.ZipInfo]) -> list[Finding]:
    """Names that are one file on some system: duplicates, and those that differ in case alone."""
    seen: dict[str, str] = {}
    files: set[str] = set()
    findings = []
    for entry in entries:
        name = entry.orig_filename
        bare = name.rstrip("/")
        parents = [bare[: match.start()] for match in re.finditer("/", bare)]
        folders = [*parents, bare] if name.endswith("/") else parents
        clash = next(
            (f for f in folders if _folded(f) in files or seen.get(_folded(f), f) != f), ""
        )
        if not name.endswith("/") and _folded(bare) in seen:
            clash = bare
        seen.update((_folded(folder), folder) for folder in folders)
        if not name.endswith("/"):
            seen.setdefault(_folded(bare), bare)
            files.add(_folded(bare))
        if clash:
            message = f"takes a name that another entry has, at least on some systems; {MEND}"
            findings.append(Finding(ascii(name), message))
    return findings


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def is_plain_name(name: str) -> bool:
    """Whether a bundle can have that name: its zip is called ``<name>_v<version>.zip``."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)) and "_v" not in name


def _top_folder(entries: Sequence[zipfile.ZipInfo], stem: str) -> tuple[str, list[Finding]]:
    tops = sorted({entry.orig_filename.partition("/")[0] for entry in entries})
    loose = [entry for entry in entries if "/" not in entry.orig_filename]
    if len(tops) > 1 or loose:
        shown = ", ".join(map(ascii, tops[:3])) + (", ..." if len(tops) > 3 else "")
        what = f"has {shown} at its top, where one folder with the bundle's name belongs"
        return "", [Finding("", f"{what}; pack that folder alone")]
    name = tops[0]
    if not is_plain_name(name):
        what = f"has a top folder {name!a}, which is no plain name without '_v'"
        return "", [Finding("", f"{what}; rename the bundle")]
    if stem != name and not re.fullmatch(re.escape(name) + r"_v\d[\w.+-]*", stem):
        what = f"has the top folder {name}, which is not the name of the file"
        return name, [Finding("", f"{what}; name the file {name}_v<version>.zip")]
    return name, []


def _too_large(entries: Sequence[zipfile.ZipInfo], max_bytes: int) -> list[Finding]:
    total = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if total > max_bytes:
        what = f"unpacks to {total} bytes, and {max_bytes} are allowed"
    elif total > SMALL and total > MAX_RATIO * packed:
        what = f"unpacks to more than {MAX_RATIO} times its size, as no bundle does"
    else:
        return []
    return [Finding("", f"{what}; {MEND}")]


def _unpack(path: Path, bundle_dir: Path, work: Path, max_bytes: int) -> Path:
    archive = read_archive(path, max_bytes=max_bytes)
    if archive.findings:
        more = len(archive.findings) - 1
        raise ArchiveError(f"{path.name}: {archive.findings[0]}" + (f" ({more} more)" * bool(more)))
    target = bundle_dir / archive.name
    _refuse_existing(target)
    try:
        with _File(os.fspath(path)) as file, zipfile.ZipFile(file) as opened:
            (work / archive.name).mkdir()
            for entry in archive.entries:
                _extract(opened, entry, work / entry.filename)
    except ArchiveError as error:
        raise ArchiveError(f"{path.name}: {error}") from error
    except UNREADABLE as error:
        raise ArchiveError(f"{path.name}: is damaged ({error}); {MEND}") from error
    except OSError as error:
        raise ArchiveError(f"{path.name}: can't be unpacked to {bundle_dir}: {error}") from error
    _refuse_existing(target)
    os.rename(work / archive.name, target)
    return target


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile stops silently at the size that the directory gives: ask for more to see a lie
    longer = copy.copy(entry)
    longer.file_size += 2 * PIECE
    size = 0
    with archive.open(longer) as source, open(target, "xb") as file:
        while piece := source.read(PIECE):
            size += len(piece)
            if size > entry.file_size:
                break
            file.write(piece)
    if size != entry.file_size:
        found = "more" if size > entry.file_size else f"{size}"
        raise ArchiveError(
            f"entry {entry.orig_filename!a} holds {found} bytes where the directory says "
            f"{entry.file_size}; {MEND}"
        )


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ArchiveError(f"{target} exists already; remove it or give another folder")


@contextmanager
def _workspace(bundle_dir: Path) -> Iterator[Path]:
    """A temporary folder beside the target; after an error the folders that were made go, too."""
    made = [folder for folder in (bundle_dir, *bundle_dir.parents) if not folder.exists()]
    try:
        bundle_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=bundle_dir))
    except OSError as error:
        raise ArchiveError(f"{bundle_dir} can't be used ({error}); give another folder") from error
    try:
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for folder in made:
            folder.rmdir()
        raise
    shutil.rmtree(work, ignore_errors=True)


def _fetch(source: str, work: Path, max_bytes: int) -> Path:
    """The file that a path or an address names; a download lands in ``work``."""
    scheme, found, _ = source.partition("://")
    if not found:
        return _existing(Path(source).expanduser())
    parts = urllib.parse.urlsplit(source)
    if scheme.lower() == "file":
        return _existing(Path(urllib.request.url2pathname(parts.path)))
    if scheme.lower() not in ("http", "https"):
        raise ArchiveError(f"{source}: give a path, or an address of file, http or https")
    name = urllib.parse.unquote(parts.path).rpartition("/")[2]
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise ArchiveError(
            f"{source}: its last part is no plain file name; give the file's address"
        )
    folder = work / "download"
    folder.mkdir(exist_ok=True)
    try:
        with (
            urllib.request.urlopen(source, timeout=60) as answer,
            open(folder / name, "xb") as file,
        ):
            size = 0
            while piece := answer.read(PIECE):
                size += len(piece)
                if size > max_bytes:
                    raise ArchiveError(f"{source}: has more than the {max_bytes} bytes allowed")
                file.write(piece)
            expected = answer.headers.get("Content-Length", "")
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise ArchiveError(f"{source}: can't be downloaded ({error}); check the address") from error
    if expected.isdecimal() and size != int(expected):
        raise ArchiveError(f"{source}: {size} of {expected} bytes arrived; try again")
    return folder / name


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ArchiveError(f"{path} is no file; give the path or the address of a zip")
    return path


def _published_sha1(path: Path, key: str, source: str) -> str:
    try:
        checksum = json.loads(path.read_text(encoding="utf-8"))[key]["checksum"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArchiveError(
            f"{source}: gives no checksum of {key} ({type(error).__name__}: {error}); give the "
            "model_info.json of this release"
        ) from error
    return str(checksum)


def _sha1(path: Path) -> str:
    digest = hashlib.sha1()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Download, check and unpack a packed bundle.")
    parser.add_argument("source", help="path or address (file, http, https) of the zip")
    parser.add_argument("--bundle_dir", default=".", help="folder that gets the bundle's folder")
    checksum = parser.add_mutually_exclusive_group()
    checksum.add_argument("--sha1", default="", help="SHA-1 that the zip must have")
    checksum.add_argument("--model_info", default="", help="model_info.json that has the SHA-1")
    options = parser.parse_args(arguments)
    try:
        folder = get_bundle(
            options.source, options.bundle_dir, sha1=options.sha1, model_info=options.model_info
        )
    except (ArchiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; nothing was unpacked", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
