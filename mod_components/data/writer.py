"""Images on disk that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from monai.data import ImageWriter, NibabelWriter

__all__ = ["WholeNibabelWriter"]


class WholeNibabelWriter(NibabelWriter):
    """MONAI's ``NibabelWriter``, for a disk that may be full: no cut file has an image's name."""

    def write(
        self, filename: str | os.PathLike[str], verbose: bool = False, **options: Any
    ) -> None:
        """Write an image beside its place, then move it there.

        Args:
            filename: path of the image.
            verbose: whether to log it.
            options: see ``NibabelWriter.write``.
        """
        ImageWriter.write(self, filename, verbose=verbose)  # logs alone
        path = Path(filename)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            part = Path(folder, path.name)
            super().write(part, **options)
            os.replace(part, path)
