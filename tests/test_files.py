"""Files are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from mod_components.errors import DataError, DiskError
from mod_components.files import (
    copy_atomically,
    read_object,
    refuse_unwritable,
    save_json,
    save_tensors,
    write_atomically,
)


def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"ne")
        file.flush()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, half, tmp_path / ".mine.tmp")
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    (tmp_path / ".last.pt.tmp").write_bytes(b"what a killed run has left")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]  # the half file is used up


def test_a_temporary_name_can_be_given(tmp_path: Path) -> None:
    names: list[str] = []
    write_atomically(
        tmp_path / "a", lambda file: names.append(Path(file.name).name), tmp_path / ".b.tmp"
    )
    assert names == [".b.tmp"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [3, 2_000_000])  # torch.save fails early, and late
def test_a_full_disk_gives_one_error_and_leaves_no_part(tmp_path: Path, numbers: int) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    (tmp_path / ".last.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskError) as caught:
        save_tensors({"a": torch.zeros(numbers)}, path)
    message = str(caught.value)
    assert message.startswith(f"{path} can't be written (No space left on device): free space")
    assert "--resume true" in message
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "folder" / "x", lambda file: file.write(b"x"))


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"12345" * 2**20)
    copy_atomically(tmp_path / "model.pt", tmp_path / "previous" / "model.pt")
    assert (tmp_path / "previous" / "model.pt").read_bytes() == b"12345" * 2**20
    with pytest.raises(FileNotFoundError):
        copy_atomically(tmp_path / "gone.pt", tmp_path / "new" / "gone.pt")
    assert not (tmp_path / "new").exists()


def test_the_file_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace, fsync = os.replace, os.fsync

    def spy_fsync(descriptor: int) -> None:
        calls.append(f"fsync {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def spy_replace(source: Any, target: Any) -> None:
        calls.append("replace")
        assert Path(source).parent == Path(target).parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(tmp_path / "a", lambda file: file.write(b"12345"))
    assert calls == ["fsync 5", "replace"]


def test_a_folder_that_can_not_be_written_is_named_with_its_mend(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b", "output_dir")
    assert list(tmp_path.iterdir()) == [], "a run that is refused for something else leaves nothing"
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DiskError, match=r"file/x can't be written \(Not a .*--output_dir, or make"):
        refuse_unwritable(tmp_path / "file" / "x", "output_dir")


def test_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "c", lambda file: file.write(b"x"))
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


def test_tensors_come_back_with_weights_only(tmp_path: Path) -> None:
    content = {"a": torch.arange(3), "epoch": 4, "scaler": {}}
    save_tensors(content, tmp_path / "x.pt")
    back = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(back["a"], content["a"])
    assert back["epoch"] == 4


def test_json_is_readable(tmp_path: Path) -> None:
    save_json({"b": 1, "path": Path("x")}, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"b": 1, "path": "x"}
    assert text == '{\n    "b": 1,\n    "path": "x"\n}\n'


def test_an_object_comes_back(tmp_path: Path) -> None:
    save_json({"b": 1}, tmp_path / "x.json")
    assert read_object(tmp_path / "x.json") == {"b": 1}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, r"can't be read as JSON \(.*No such file.*\)"),
        ("{", r"can't be read as JSON \(.*\)"),
        ("\xff", r"can't be read as JSON \(.*decode.*\)"),
        ("[]", "holds a list, not an object"),
    ],
)
def test_what_is_no_object_is_named_with_its_mend(
    tmp_path: Path, text: str | None, fault: str
) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"^the plan {tmp_path}/x\.json {fault}\. Mend it\.$"):
        read_object(tmp_path / "x.json", "the plan", "Mend it.")
