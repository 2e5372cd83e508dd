"""Hostile and damaged archives are refused, and nothing is left of them."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mod_components.release import unpack as module
from mod_components.release.unpack import ArchiveError, get_bundle, read_archive, unpack

FILES = {"LICENSE": "licence", "configs/train.json": "{}", "models/model.pt": "weights" * 100}
Entries = list[tuple[str | zipfile.ZipInfo, bytes]]


def write(path: Path, entries: Entries, level: int = 6) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def good_entries() -> Entries:
    return [(f"toy_mod/{name}", text.encode()) for name, text in FILES.items()]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write(tmp_path / "in" / "toy_mod_v0.1.0.zip", good_entries())


def special(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (mode | 0o777) << 16
    return entry


def patched(path: Path, **fields: int) -> Path:
    """Overwrite fields of the last entry in the directory, as an attacker would."""
    offsets = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "size": (24, "<I")}
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    for name, value in fields.items():
        offset, form = offsets[name]
        struct.pack_into(form, data, at + offset, value)
    path.write_bytes(data)
    return path


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_good_one(good: Path, tmp_path: Path) -> None:
    archive = read_archive(good)
    assert archive.name == "toy_mod"
    assert archive.findings == []
    folder = unpack(good, tmp_path / "deep" / "out")
    assert folder == tmp_path / "deep" / "out" / "toy_mod"
    assert {path: (folder / path).read_text() for path in FILES} == FILES
    assert everything(tmp_path / "deep" / "out") == {
        *("toy_mod", "toy_mod/configs", "toy_mod/models"),
        *(f"toy_mod/{path}" for path in FILES),
    }


HOSTILE: dict[str, tuple[Entries, str]] = {
    "traversal": ([("toy_mod/../../evil", b"x")], "leads out of the folder"),
    "traversal at once": ([("../evil", b"x")], "leads out of the folder"),
    "absolute": ([("/etc/evil", b"x")], "is an absolute path or names a drive"),
    "drive": ([("C:/evil", b"x")], "is an absolute path or names a drive"),
    "backslash": ([("toy_mod/..\\..\\evil", b"x")], "has a backslash"),
    "control": ([("toy_mod/a\nb", b"x")], "has a backslash or a control character"),
    "device": ([("toy_mod/nul.txt", b"x")], "is no plain name on every system"),
    "dot": ([("toy_mod/./evil", b"x")], "is no plain name on every system"),
    "trailing dot": ([("toy_mod/LICENSE.", b"x")], "is no plain name on every system"),
    "symlink": ([(special("toy_mod/link", stat.S_IFLNK), b"/etc")], "is a symbolic link"),
    "fifo": ([(special("toy_mod/pipe", stat.S_IFIFO), b"")], "is neither a file nor a folder"),
    "folder as file": ([(special("toy_mod/f", stat.S_IFDIR), b"x")], "a file and a folder at once"),
    "duplicate": ([("toy_mod/LICENSE", b"other")], "takes a name that another entry has"),
    "case": ([("toy_mod/License", b"x")], "takes a name that another entry has"),
    "folder's case": ([("toy_mod/Configs/a.json", b"x")], "takes a name that another entry has"),
    "unicode": ([("toy_mod/\u00e9", b"x"), ("toy_mod/e\u0301", b"y")], "takes a name"),
    "file as folder": ([("toy_mod/LICENSE/x", b"x")], "takes a name that another entry has"),
    "two tops": ([("other_mod/LICENSE", b"x")], "has 'other_mod', 'toy_mod' at its top"),
    "loose file": ([("evil", b"x")], "has 'evil', 'toy_mod' at its top"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive(name: str, tmp_path: Path) -> None:
    entries, message = HOSTILE[name]
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "toy_mod_v0.1.0.zip", good_entries() + entries)
    before = everything(tmp_path)
    assert any(message in str(finding) for finding in read_archive(path).findings)
    with pytest.raises(ArchiveError) as caught:
        unpack(path, tmp_path / "out")
    assert str(caught.value).startswith("toy_mod_v0.1.0.zip: ")
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "harmless"),
    [
        (0x5455, True),  # times, of Info-ZIP
        (0x5855, True),  # its older times and owners, which macOS writes
        (0x4453, True),  # access lists of Windows
        (0x7075, False),  # another name for the entry
    ],
)
def test_fields_of_common_programs(kind: int, harmless: bool, tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("toy_mod/notes.txt")
    entry.extra = struct.pack("<HH", kind, 8) + bytes(8)
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "toy_mod.zip", [*good_entries(), (entry, b"x")])
    if harmless:
        assert unpack(path, tmp_path / "out").is_dir()
        return
    with pytest.raises(ArchiveError, match=r"unknown field, .* zip it again with 'python -m mod_c"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("top", "file", "message"),
    [
        ("toy_mod", "other_mod_v0.1.0.zip", "which is not the name of the file"),
        ("toy_v2", "toy_v2.zip", "which is no plain name without '_v'"),
        (".toy", ".toy.zip", "which is no plain name"),
    ],
)
def test_name_of_the_top_folder(top: str, file: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / file, [(f"{top}/LICENSE", b"x")])
    with pytest.raises(ArchiveError, match=message):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bomb_is_refused_from_its_directory(good: Path, tmp_path: Path) -> None:
    """10 GB in three entries that say so; as for real, the directory alone is read."""
    entries: Entries = [(f"toy_mod/{name}", b"\0" * 4 * 10**6) for name in "abc"]
    data = bytearray(write(good, entries).read_bytes())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        struct.pack_into("<I", data, at + 24, 3_400_000_000)
    good.write_bytes(data)
    with pytest.raises(ArchiveError, match="unpacks to 10200000000 bytes, and 4000000000 are"):
        unpack(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_bomb(good: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("toy_mod/bomb", "w") as file,
    ):
        for _ in range(75):
            file.write(bytes(4 * 10**6))
    assert good.stat().st_size < 2 * 10**6
    with pytest.raises(ArchiveError, match="unpacks to 300000000 bytes, and 200000000 are allowed"):
        unpack(good, tmp_path / "out", max_bytes=2 * 10**8)
    with pytest.raises(ArchiveError, match="unpacks to more than 100 times its size"):
        unpack(good, tmp_path / "out")
    # a directory that says little of it, and a checksum that fits what it says
    patched(good, size=1000, crc=zlib.crc32(bytes(1000)))
    with pytest.raises(ArchiveError, match="holds more bytes where the directory says 1000"):
        unpack(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stored", [False, True])
def test_directory_that_lies(stored: bool, good: Path, tmp_path: Path) -> None:
    if stored:
        with zipfile.ZipFile(good, "w") as archive:
            archive.writestr("toy_mod/LICENSE", "licence" * 99)
    patched(good, size=100)
    with pytest.raises(ArchiveError, match="holds more bytes where the directory says 100"):
        unpack(good, tmp_path / "out")
    patched(good, size=5000)
    with pytest.raises(ArchiveError, match=r"holds \d+ bytes where the directory says 5000"):
        unpack(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flags": 1}, "is encrypted"),
        ({"method": 12}, "is compressed by another method than deflate"),
        ({"crc": 1}, "is damaged .*Bad CRC-32"),
    ],
)
def test_patched_entry(fields: dict[str, int], message: str, good: Path, tmp_path: Path) -> None:
    patched(good, **fields)
    with pytest.raises(ArchiveError, match=message):
        unpack(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_damage_is_one_error(good: Path, tmp_path: Path) -> None:
    """Each byte flipped in turn: the contents are right, or it is refused."""
    data = good.read_bytes()
    refused = 0
    for at in range(0, len(data), 3):
        good.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        out = tmp_path / "out"
        try:
            folder = unpack(good, out)
        except ArchiveError:
            refused += 1
            assert not out.exists()
        else:
            assert {p: (folder / p).read_text() for p in FILES} == FILES
            shutil.rmtree(out)
    assert refused > len(data) / 6
    for end in range(0, len(data) - 1, 7):
        good.write_bytes(data[:end])
        with pytest.raises(ArchiveError):
            unpack(good, tmp_path / "out")


def test_too_many_entries(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 2)
    with pytest.raises(ArchiveError, match="has 3 entries, and 1 to 2 are allowed"):
        unpack(good, tmp_path / "out")
    monkeypatch.setattr(module, "MAX_DIRECTORY", 100)
    with pytest.raises(ArchiveError, match="its directory has more than 100 bytes"):
        unpack(good, tmp_path / "out")


def test_code_before_the_archive_is_refused(good: Path, tmp_path: Path) -> None:
    good.write_bytes(b"#!/bin/sh\n" + good.read_bytes())
    with pytest.raises(ArchiveError, match="holds something before its first entry"):
        unpack(good, tmp_path / "out")


def test_existing_bundle_stays(good: Path, tmp_path: Path) -> None:
    own = tmp_path / "out" / "toy_mod" / "mine"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(ArchiveError, match="toy_mod exists already; remove it or give another"):
        unpack(good, tmp_path / "out")
    assert everything(tmp_path / "out") == {"toy_mod", "toy_mod/mine"}
    assert own.read_text() == "mine"


@pytest.fixture
def address(good: Path) -> Iterator[str]:
    """The folder of the good one, on a loopback server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    def handler(*arguments: object) -> Quiet:
        return Quiet(*arguments, directory=str(good.parent))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_download_with_checksum(good: Path, address: str, tmp_path: Path) -> None:
    sha1 = hashlib.sha1(good.read_bytes()).hexdigest()
    source = f"{address}/{good.name}"
    assert get_bundle(source, tmp_path / "a", sha1=sha1.upper()) == tmp_path / "a" / "toy_mod"
    info = {"toy_mod_v0.1.0": {"checksum": sha1, "source": source}}
    (good.parent / "model_info.json").write_text(json.dumps(info))
    get_bundle(source, tmp_path / "b", model_info=f"{address}/model_info.json")
    get_bundle(good.as_uri(), tmp_path / "c", model_info=str(good.parent / "model_info.json"))
    assert everything(tmp_path / "a") == everything(tmp_path / "b") == everything(tmp_path / "c")
    with pytest.raises(ArchiveError, match=f"its SHA-1 is {sha1}, not 0000"):
        get_bundle(source, tmp_path / "d", sha1="0" * 40)
    (good.parent / "model_info.json").write_text("{}")
    with pytest.raises(ArchiveError, match=r"gives no checksum of toy_mod_v0\.1\.0"):
        get_bundle(source, tmp_path / "d", model_info=f"{address}/model_info.json")
    with pytest.raises(ArchiveError, match="has more than the 100 bytes allowed"):
        get_bundle(source, tmp_path / "d", max_bytes=100)
    with pytest.raises(ArchiveError, match=r"can't be downloaded \(HTTP Error 404"):
        get_bundle(f"{address}/other_mod.zip", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "source", ["ftp://host/toy_mod.zip", "http://127.0.0.1:1/toy_mod.zip", "http://h/", "no.zip"]
)
def test_addresses_that_give_nothing(source: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=source):
        get_bundle(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """The file alone, under the name that it is published by, without any installed package."""
    alone = tmp_path / "alone" / "get_bundle.py"
    alone.parent.mkdir()
    shutil.copy(module.__file__, alone)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(alone), *arguments],
            cwd=alone.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_script_alone(script: Script, good: Path, tmp_path: Path) -> None:
    done = script(str(good), "--bundle_dir", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(tmp_path / "out" / "toy_mod")
    for path, text in FILES.items():
        assert (tmp_path / "out" / "toy_mod" / path).read_text() == text
    again = script(str(good), "--bundle_dir", str(tmp_path / "out"))
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
    assert "exists already" in again.stderr


@pytest.mark.parametrize("name", ["traversal", "absolute", "symlink", "two tops"])
def test_script_refuses(name: str, script: Script, tmp_path: Path) -> None:
    path = write(tmp_path / "toy_mod_v0.1.0.zip", good_entries() + HOSTILE[name][0])
    before = everything(tmp_path)
    done = script(str(path), "--bundle_dir", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: toy_mod_v0.1.0.zip: ")
    assert done.stderr.count("\n") == 1
    assert everything(tmp_path) == before
