"""The command line: ``python -m mod_components VERB``."""

from __future__ import annotations

import json as as_json
import sys
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

    def check(
        self,
        folder: str,
        json: bool = False,
        fast: bool = False,
        workers: int = 0,
        legacy_et: bool = False,
    ) -> None:
        """Read a data set, list its cases and everything that is wrong; exit 1 on errors.

        Args:
            folder: a folder in a layout that training understands.
            json: print JSON instead of tables.
            fast: headers and label codes alone, as before every training.
            workers: cases read at a time; as many as there are cores by default.
            legacy_et: as for training.
        """
        from mod_components.data import check_folder

        result = check_folder(folder, legacy_et=legacy_et, fast=fast, workers=workers or None)
        print(as_json.dumps(result.as_dict(), indent=4) if json else result.table())
        sys.exit(result.exit_code)

    def view(
        self,
        case: str,
        pred: str = "",
        output: str = "",
        dataset_dir: str = "",
        legacy_et: bool = False,
    ) -> None:
        """Draw a case into a PNG: three planes, four modalities, truth and prediction outlined.

        Args:
            case: a case's folder, or its id in ``dataset_dir``.
            pred: a predicted label map.
            output: the PNG to write; ``<case>.png`` by default.
            dataset_dir: the data set's folder.
            legacy_et: as for training.
        """
        from mod_components.evaluation.view import view_case

        print(
            view_case(
                str(case),
                pred or None,
                output or None,
                dataset_dir=str(dataset_dir),
                legacy_et=legacy_et,
            )
        )

    def compare(self, a: str, b: str, json: bool = False) -> None:
        """Compare two evaluations of the same cases, pair by pair.

        Args:
            a: output folder of an evaluation.
            b: output folder of another one.
            json: print JSON instead of a table.
        """
        from mod_components.evaluation.compare import compare

        result = compare(a, b)
        print(as_json.dumps(result.as_dict(), indent=4) if json else "\n".join(result.table()))

    def tune(self, *runs: str) -> None:
        """Choose post-processing thresholds on held-out folds; store them beside each model.

        Args:
            runs: folders (``bundle_root``) of trainings on different folds, each evaluated.
        """
        from mod_components.evaluation.tuning import table, tune

        print(table(tune(runs)))

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
