"""What a check reports."""

from __future__ import annotations

import os
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a case, or with the whole folder.

    Attributes:
        case: the case's id; empty for a problem of the folder.
        file: path of the file concerned, or of the folder.
        severity: "error" (the case can't be used) or "warning".
        message: what is wrong.
        mend: what to do about it.
        kind: short name of the kind of problem, the same in every version.
    """

    case: str
    file: str
    severity: str
    message: str
    mend: str
    kind: str = ""

    def __str__(self) -> str:
        head = f"{self.case}: " if self.case else ""
        return f"{head}{self.file}: {self.message} ({self.mend})"


def relative(path: str, folder: str) -> str:
    """A path below the folder without it, "." for the folder itself; another path as it is."""
    short = os.path.relpath(path, folder)
    return path if short.startswith("..") else short
