"""Errors that a user can mend, and how they are shown."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import NoReturn

__all__ = [
    "CheckpointError",
    "DataError",
    "DiskError",
    "SettingsError",
    "TrainingError",
    "UserError",
    "fail",
    "show_plain_errors",
]


class UserError(Exception):
    """Something the user can mend; the message names what, where and the mend.

    From a worker of a data loader comes an error whose text begins with the worker's traceback. It
    is shown without (Ignite logs it, too), unless ``MOD_TRACEBACK`` is set.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if not text.startswith("Caught ") or os.environ.get("MOD_TRACEBACK"):
            return text
        return text.rpartition(f"{type(self).__name__}: ")[2].strip()


class DataError(UserError, ValueError):
    """Data that cannot be used as they are."""


class SettingsError(UserError, ValueError):
    """A setting outside its range."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged or made for another network."""


class TrainingError(UserError, RuntimeError):
    """A training whose numbers have gone wrong."""


class DiskError(UserError, OSError):
    """A file that the disk does not take."""


# no space left, quota used up, file too large, input/output error, disk become read-only
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# how MONAI puts it that an image can't be saved, whatever the reason
_UNSAVED = re.compile(r"suitable writer for (.+?)\.\n.*\[Errno \d+\] ([^\n:]+)", re.S)
# how gloo puts it that a process which others wait for is gone, or silent
_OF_A_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")


def disk_error(
    error: BaseException, path: str | os.PathLike[str] | None = None
) -> DiskError | None:
    """Put an error of writing into words, where it is the disk's.

    Args:
        error: what was raised; what it came from counts too, as ``torch.save`` hides the disk's
            answer behind an error of its own.
        path: the file that was to be written, where the error does not know it.

    Returns:
        An error naming file, reason and mend; None for another error, such as a lacking permission.
    """
    for cause in causes(error):
        if isinstance(cause, DiskError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _OF_THE_DISK:
            return DiskError(
                f"{path or cause.filename or 'a file'} can't be written ({cause.strerror}): free "
                "space on its disk, or mend it; what was there before is whole. If this was a "
                "training, --resume true goes on and loses at most an epoch."
            )
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on; not what was handled with ``raise ... from None``."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def fail(message: str) -> NoReturn:
    """Raise a :class:`SettingsError` from within an expression of a config.

    Args:
        message: what is wrong, where, and the mend.

    Raises:
        SettingsError: always.
    """
    raise SettingsError(message)


def show_plain_errors() -> None:
    """End an uncaught :class:`UserError` with its message alone, instead of a traceback.

    MONAI wraps an error once for each config entry on the way, so that the message drowns in a
    page of traceback. Only what the interpreter prints at the end changes: programs that catch
    errors see the same as before, and ``MOD_TRACEBACK=1`` brings the whole traceback back.
    """
    if getattr(sys.excepthook, "_shows_plain_errors", False) or os.environ.get("MOD_TRACEBACK"):
        return
    usual = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        message = _plain_message(error)
        if message is None:
            usual(kind, error, traceback)
        else:
            print(f"error: {message}", file=sys.stderr)

    hook._shows_plain_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _plain_message(error: BaseException) -> str | None:
    """What a user can mend among an error and what it came from; None where there is nothing."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return str(cause)
        if unsaved := _UNSAVED.search(str(cause)) if isinstance(cause, RuntimeError) else None:
            return (
                f"{unsaved[1]} can't be written ({unsaved[2]}): make room there, or give another "
                "--output_dir."
            )
        if isinstance(cause, RuntimeError) and any(
            sign in str(cause) and "gloo" in str(cause) for sign in _OF_A_LOST_PROCESS
        ):
            return (
                "another process of this training has died or hangs; its own output says why "
                f"({cause}). --resume true goes on after the last epoch that was saved."
            )
    full = disk_error(error)
    return None if full is None else str(full)
