"""The command line: ``python -m mod_components VERB``."""

from __future__ import annotations

from pathlib import Path

from mod_components.errors import show_plain_errors

__all__ = ["main"]


class Commands:
    """Tools around the bundles; training and inference run by ``python -m monai.bundle run``."""

    def render(self, folder: str = "bundles") -> None:
        """Render all bundles from the template and the table of backbones.

        Args:
            folder: where the bundles lie; run it from the repository's root.
        """
        from mod_components.release import render

        changed = render(Path(folder))
        print("\n".join(str(path) for path in changed) or f"{folder} is up to date.")

    def sample(self, folder: str = "", cases: int = 16) -> None:
        """Make the embedded sample data set and print its folder.

        Args:
            folder: where; by default in the user's cache.
            cases: number of cases.
        """
        from mod_components.data import make_sample

        print(make_sample(folder or None, cases=cases))


def main() -> None:
    """Run the verb that the command line names."""
    import fire

    show_plain_errors()
    fire.Fire(Commands, name="python -m mod_components")
