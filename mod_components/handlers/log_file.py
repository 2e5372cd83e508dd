"""What the console shows of a run, in a file that does not grow without end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

__all__ = ["log_to_file"]

LARGEST = 5 * 2**20  # bytes of a file
OLDER = 2  # files beside the newest, .1 and .2


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Copy log lines and Python's warnings into a file, which is appended to and rotated.

    Nothing changes on the console: log lines go to the file if the root logger lets them through,
    warnings are shown as before and written too. The file is made with the first line. A line that
    can't be written (a full disk) does not end the run.

    Args:
        path: the file; ``path.1`` and ``path.2`` are older ones.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        path, maxBytes=LARGEST, backupCount=OLDER, encoding="utf-8", delay=True
    )
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # not logging.captureWarnings, which would take them off the console where nothing logs to it
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        shown(message, category, filename, lineno, file, line)
        text = f"{category.__name__}: {message}"
        handler.handle(
            logging.LogRecord("warnings", logging.WARNING, filename, lineno, text, None, None)
        )

    warnings.showwarning = show
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = shown
        logging.root.removeHandler(handler)
        handler.close()
