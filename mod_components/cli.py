"""The command line: ``python -m mod_components VERB``."""

from __future__ import annotations

from pathlib import Path

from mod_components.errors import show_plain_errors

__all__ = ["main"]


class Commands:
    """Tools around the bundles; training and inference run by ``python -m monai.bundle run``."""

    def render(self, folder: str = "bundles", table: str = "") -> None:
        """Render all bundles from the template and the table of backbones.

        Args:
            folder: where the bundles lie; run it from the repository's root.
            table: a JSON file with rows for backbones of your own, rendered instead.
        """
        from mod_components.release import backbones, render

        changed = render(Path(folder), table=backbones(table or None))
        print("\n".join(str(path) for path in changed) or f"{folder} is up to date.")

    def sample(self, folder: str = "", cases: int = 16) -> None:
        """Make the embedded sample data set and print its folder.

        Args:
            folder: where; by default in the user's cache.
            cases: number of cases.
        """
        from mod_components.data import make_sample

        print(make_sample(folder or None, cases=cases))

    def curves(self, *runs: str, output: str = "curves.png") -> None:
        """Draw the curves of several runs into one picture.

        Args:
            runs: ``name=folder`` for each run, the folder being its ``output_dir``.
            output: the PNG to write.
        """
        from mod_components.study import plot_curves

        pairs = dict(run.split("=", 1) for run in runs)
        for name, panels in plot_curves(pairs, output).items():
            for panel, curve in panels.items():
                epoch, value = curve[-1]
                print(f"{name}: {panel}: {curve[0][1]:.4g} at first, {value:.4g} at epoch {epoch}")
        print(output)


def main() -> None:
    """Run the verb that the command line names."""
    import fire

    show_plain_errors()
    fire.Fire(Commands, name="python -m mod_components")
