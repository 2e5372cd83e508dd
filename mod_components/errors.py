"""Errors that a user can mend, and how they are shown."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import NoReturn

__all__ = [
    "CheckpointError",
    "DataError",
    "SettingsError",
    "UserError",
    "fail",
    "show_plain_errors",
]


class UserError(Exception):
    """Something the user can mend; the message names what, where and the mend."""


class DataError(UserError, ValueError):
    """Data that cannot be used as they are."""


class SettingsError(UserError, ValueError):
    """A setting outside its range."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged or made for another network."""


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
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            usual(kind, error, traceback)
        else:
            print(f"error: {cause}", file=sys.stderr)

    hook._shows_plain_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
