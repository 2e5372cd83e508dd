"""The page of a report: its text, and the tables and figures beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mod_components.study import figures
from mod_components.study.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPORT", "Page"]

REPORT = "report.md"


class Page:
    """Text that grows, beside the files that it refers to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.paths: list[Path] = []

    def text(self, *lines: str) -> None:
        """Lines, and an empty one behind them."""
        self.lines += [*lines, ""]

    def table(self, table: Table) -> None:
        """A table as Markdown and, beside it, as CSV."""
        self.text(*table.markdown())
        self.text(f"[{table.name}.csv]({table.name}.csv)")
        self.paths.append(table.write(self.folder))

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """A figure as PNG with its caption."""
        self.text(f"![{caption}]({name})", "", caption)
        self.paths.append(figures.save_figure(figure, self.folder / name))

    def finish(self) -> list[Path]:
        """Write the text; its path first, then those of the files that it refers to."""
        path = self.folder / REPORT
        path.write_text("\n".join(self.lines).rstrip() + "\n", encoding="utf-8")
        return [path, *self.paths]
