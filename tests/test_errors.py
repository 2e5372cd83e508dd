"""Errors of the disk and of lost processes, in one line."""

from __future__ import annotations

import errno
import sys

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from torch.utils.data import DataLoader, Dataset

from mod_components.errors import DataError, DiskError, disk_error, show_plain_errors


def full(path: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", path)


def shown(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> str:
    """What an uncaught error prints, or "traceback"."""
    usual: list[BaseException] = []
    monkeypatch.delenv("MOD_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _traceback: usual.append(error))
    show_plain_errors()
    printed: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", printed.append)
    sys.excepthook(type(error), error, None)
    return "traceback" if usual else "".join(printed)


def wrapped(error: BaseException) -> RuntimeError:
    """As MONAI wraps what an expression of a config raises."""
    outer = RuntimeError("Failed to evaluate ConfigExpression")
    outer.__cause__ = error
    return outer


def test_the_disk_is_told_from_other_errors() -> None:
    found = disk_error(full("/a/b"))
    assert isinstance(found, DiskError)
    assert str(found).startswith("/a/b can't be written (No space left on device): free space")
    assert str(disk_error(full(), "c")).startswith("c can't be written")
    assert disk_error(wrapped(found)) is found
    for other in (OSError(errno.EACCES, "Permission denied", "/a"), OSError("x"), ValueError("x")):
        assert disk_error(other) is None


def test_a_full_disk_is_one_line_wherever_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(wrapped(full("/a/events")), monkeypatch)
    assert text.startswith("error: /a/events can't be written")
    assert text.count("\n") == 1


def test_an_image_that_can_not_be_saved_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI takes any error of writing for a lacking library, and keeps it as text."""
    saving = SaveImage("/dev/null/out", print_log=False, separate_folder=False)
    saving.folder_layout.makedirs = False
    with pytest.raises(RuntimeError) as caught:
        saving(MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": "A.nii.gz"}))
    assert shown(wrapped(caught.value), monkeypatch) == (
        "error: /dev/null/out/A_trans.nii.gz can't be written (Not a directory): make room there, "
        "or give another --output_dir.\n"
    )


def test_an_error_of_ours_counts_before_what_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    error = DataError("cache_dir is full: make room")
    error.__cause__ = full()
    assert shown(wrapped(error), monkeypatch) == "error: cache_dir is full: make room\n"


class BadCases(Dataset[None]):
    def __getitem__(self, _: int) -> None:
        try:
            raise full()
        except OSError as error:
            raise DataError("cache_dir is full: make room,\nor leave it out.") from error

    def __len__(self) -> int:
        return 1


def test_an_error_of_a_loaders_worker_is_its_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(BadCases(), num_workers=1)))
    assert "Traceback" not in str(caught.value)
    monkeypatch.setenv("MOD_TRACEBACK", "1")
    assert "Traceback" in str(caught.value)
    text = shown(caught.value, monkeypatch)
    assert text == "error: cache_dir is full: make room,\nor leave it out.\n"


def test_an_error_that_was_handled_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    error = KeyError("x")
    error.__context__ = DataError("an attempt that failed")
    assert shown(error, monkeypatch) == "error: an attempt that failed\n"
    error.__suppress_context__ = True  # raise ... from None
    assert shown(error, monkeypatch) == "traceback"


@pytest.mark.parametrize("what", ["Connection closed by peer [127.0.0.1]:1", "Timed out waiting"])
def test_a_lost_process_is_one_line(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(wrapped(RuntimeError(f"[gloo/transport/tcp/pair.cc:553] {what}")), monkeypatch)
    assert text.startswith("error: another process of this training has died or hangs")
    assert what in text
    assert "--resume true" in text


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(wrapped(RuntimeError("Connection closed by peer")), monkeypatch) == "traceback"
    assert shown(KeyError("x"), monkeypatch) == "traceback"
