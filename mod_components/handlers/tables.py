"""CSV files that are whole on disk after every row."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mod_components.files import write_atomically

__all__ = ["EpochTable", "write_csv"]


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write rows under a header, atomically.

    Args:
        path: file to write or replace; its folder is made.
        columns: all columns, in order; a value that a row does not have is left empty.
        rows: values by column; floats are written with 6 significant digits.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


class EpochTable:
    """A CSV file with one row an epoch, always whole on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def take_over(self, before_epoch: int) -> None:
        """Keep an earlier run's rows of epochs below ``before_epoch``; the rest goes."""
        self.columns, self.rows = [], []
        if not self.path.is_file():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for row in reader:
                # A line that someone has damaged by hand must not stop a training.
                epoch = row.get("epoch") or ""
                if epoch.isdecimal() and int(epoch) < before_epoch:
                    self.rows.append({k: v for k, v in row.items() if k and v is not None})
            if self.rows:
                self.columns = list(reader.fieldnames or [])

    def append(self, row: dict[str, Any]) -> None:
        """Add a row and write the file anew; columns not met before come last."""
        self.columns += [name for name in row if name not in self.columns]
        self.rows.append(row)
        write_csv(self.path, self.columns, self.rows)
