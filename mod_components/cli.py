"""The command line: ``python -m mod_components VERB``."""

from __future__ import annotations

import json as as_json
import os
import sys
from pathlib import Path

from mod_components.errors import SettingsError, show_plain_errors
from mod_components.settings import flag

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

    def sample(self, folder: str = "", cases: int | str = 16) -> None:
        """Make the embedded sample data set and print its folder.

        Args:
            folder: where; by default in the user's cache.
            cases: number of cases.
        """
        from mod_components.data import make_sample

        print(make_sample(folder or None, cases=_count("cases", cases)))

    def check(
        self,
        folder: str = "",
        *,
        json: bool | str = False,
        fast: bool | str = False,
        workers: int | str = 0,
        legacy_et: bool | str = False,
    ) -> None:
        """Read a data set, list its cases and everything that is wrong; exit 1 on errors.

        Args:
            folder: a folder in a layout that training understands.
            json: print JSON instead of tables.
            fast: headers and label codes alone, as before every training.
            workers: cases read at a time; by default one a core, and 8 at most.
            legacy_et: as for training.
        """
        from mod_components.data.checks import check_folder, table

        folder, json = _behind_a_switch(folder, json)
        folder, fast = _behind_a_switch(folder, fast)
        if not folder:
            raise SettingsError("check: give the folder of a data set.")
        as_text = not flag(json)
        result = check_folder(
            folder,
            legacy_et=flag(legacy_et),
            fast=flag(fast),
            workers=_count("workers", workers) or None,
        )
        print(table(result) if as_text else as_json.dumps(result.as_dict(), indent=4))
        sys.exit(result.exit_code)

    def view(
        self,
        case: str,
        *,
        pred: str = "",
        output: str = "",
        dataset_dir: str = "",
        legacy_et: bool | str = False,
    ) -> None:
        """Draw a case into a picture: three planes, four modalities, truth and prediction outlined.

        Args:
            case: a case's folder, or its id in ``dataset_dir``.
            pred: a predicted label map.
            output: the picture (.png, .jpg, .pdf, .svg, .tif or .webp) or its folder; by default
                ``<case>.png``.
            dataset_dir: the data set's folder.
            legacy_et: as for training.
        """
        from mod_components.evaluation.view import view_case

        print(
            view_case(
                case,
                pred or None,
                output or None,
                dataset_dir=dataset_dir,
                legacy_et=flag(legacy_et),
            )
        )

    def compare(self, *evaluations: str, json: bool | str = False) -> None:
        """Compare two evaluations of the same cases, pair by pair.

        Args:
            evaluations: output folders of two evaluations.
            json: print JSON instead of a table.
        """
        from mod_components.evaluation.compare import compare

        first, json = _behind_a_switch("", json)
        folders = [first, *evaluations] if first else list(evaluations)
        if first:  # ``A --json B`` reaches Fire as B and A
            folders.sort(key=_place)
        if len(folders) != 2:
            raise SettingsError(f"compare: give two folders of evaluations, got {len(folders)}.")
        as_text = not flag(json)
        result = compare(*folders)
        text = "\n".join(result.table())
        print(text if as_text else as_json.dumps(result.as_dict(), indent=4))

    def tune(self, *runs: str, dataset_dir: str = "") -> None:
        """Choose post-processing thresholds on held-out folds; store them beside each model.

        Args:
            runs: folders (``bundle_root``) of trainings on different folds, each evaluated.
            dataset_dir: where the data lie now, if they have moved.
        """
        from mod_components.evaluation.tuning import table, tune

        print(table(tune(runs, dataset_dir)))

    def pack(
        self,
        name: str,
        *,
        run: str = "",
        dist: str = "dist",
        base_url: str = "",
        datalist: bool | str = False,
        table: str = "",
        bundles: str = "bundles",
    ) -> None:
        """Pack a trained bundle into a zip that runs where this package is not installed.

        Args:
            name: a bundle, such as ``swinunetr_mod``, or ``all``; from the repository's root.
            run: the folder (``bundle_root``) of the training; by default the bundle's own.
            dist: the folder to write into.
            base_url: where the zip will be found, for ``model_info.json``.
            datalist: pack the list of the cases too; their ids can be names of patients.
            table: a JSON file with rows for backbones of your own.
            bundles: the folder that the bundles were rendered into.
        """
        from mod_components.release.pack import pack, pack_all

        if name == "all" and run:
            raise SettingsError("pack: --run is the training of one bundle; name that bundle.")
        listed, url = flag(datalist), base_url
        where: dict[str, str] = {"bundles": bundles, "dist": dist, "table": table}
        if name == "all":
            paths = pack_all(base_url=url, datalist=listed, **where)
        else:
            paths = [pack(name, run=run, base_url=url, datalist=listed, **where)]
        print("\n".join(str(path) for path in paths))

    def verify(self, *paths: str) -> None:
        """Check bundles offline, packed or not, and print what is wrong; exit 1 on anything.

        Args:
            paths: zips and folders of bundles; ``all`` is every zip in ``dist/`` or, where there
                is none, every folder in ``bundles/``.
        """
        from mod_components.release.verify import bundles_to_verify, verify

        passed = True
        for path in bundles_to_verify(paths):
            report = verify(path)
            print("\n".join(report.lines()), flush=True)
            passed &= report.passed
        sys.exit(not passed)

    def curves(self, *runs: str, output: str = "curves.png") -> None:
        """Draw the curves of several runs into one picture.

        Args:
            runs: ``name=folder`` for each run, the folder being its ``output_dir``.
            output: the PNG to write.
        """
        from mod_components.evaluation.curves import plot_curves

        named = [run.partition("=")[::2] for run in runs]
        if wrong := [run for run, (name, folder) in zip(runs, named, strict=True) if not folder]:
            raise SettingsError(f"curves: give each run as name=folder, got {', '.join(wrong)}.")
        pairs = dict(named)
        if len(pairs) < len(named):
            raise SettingsError("curves: two runs have one name; give each a name of its own.")
        for name, panels in plot_curves(pairs, output).items():
            for panel, curve in panels.items():
                epoch, value = curve[-1]
                print(f"{name}: {panel}: {curve[0][1]:.4g} at first, {value:.4g} at epoch {epoch}")
        print(output)

    def study(
        self,
        plan: str,
        *,
        folder: str = "",
        dataset_dir: str = "",
        jobs: int | str = 1,
        cluster: str = "",
        dry_run: bool | str = False,
    ) -> None:
        """Run what a plan asks for and has not run yet.

        Args:
            plan: a JSON file (docs/how-to/study.md).
            folder: where the runs lie; by default beside the plan, named as the study is.
            dataset_dir: folder of the data set, instead of the plan's.
            jobs: runs at a time on this machine.
            cluster: parameters of a SLURM job as JSON, such as '{"slurm_partition": "gpu"}': hand
                each run to SLURM instead (needs submitit).
            dry_run: list the runs alone.
        """
        from mod_components.study import open_study

        parameters = _parameters(cluster) if cluster else None
        parallel = max(1, _count("jobs", jobs))
        study = open_study(plan, folder, dataset_dir)
        pending, total = study.pending(), len(list(study.plan.runs()))
        print(f"{study.folder}: {total - len(pending)} of {total} runs are finished")
        if flag(dry_run):
            print("\n".join(str(run.folder) for run in pending))
        elif parameters is not None:
            print("\n".join(f"job {job}" for job in study.submit(parameters)))
        else:
            print("\n".join(map(str, study.carry_out(parallel))))

    def report(self, study: str, *, output: str = "") -> None:
        """Write tables and figures of a study's finished runs.

        Args:
            study: the study's folder.
            output: the folder to write into; by default ``report`` in the study's.
        """
        from mod_components.study.report import write_report

        print("\n".join(map(str, write_report(study, output))))


def _parameters(cluster: str) -> dict[str, object]:
    try:
        found = as_json.loads(cluster)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f'cluster: give JSON such as {{"timeout_min": 600}}, got {cluster!r}.')
    return found


def _behind_a_switch(folder: str, switch: bool | str) -> tuple[str, bool | str]:
    """``--json FOLDER`` reaches Fire as the switch's value: take it as the folder it is."""
    if folder or not isinstance(switch, str) or switch.lower() in ("true", "false"):
        return folder, switch
    return switch, True


def _place(word: str) -> int:
    """Where a word stands in the command; behind all others if it does not."""
    words = sys.argv[1:]
    return words.index(word) if word in words else len(words)


def _count(name: str, value: int | str) -> int:
    text = str(value)
    if not text.isdecimal():
        raise SettingsError(f"{name} must be a whole number, got {value!r}.")
    return int(text)


def _word(argument: str) -> str:
    """Quote an argument: Fire makes a number of 2021, and a tuple of a,b."""
    name, equals, value = argument.partition("=")
    if argument.startswith("--"):
        return f"{name}={value!r}" if equals else argument
    return argument if argument.startswith("-") else repr(argument)


def main() -> None:
    """Run the verb that the command line names."""
    import fire

    show_plain_errors()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console may not know → or the bytes of a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        verb, words = sys.argv[1:2], sys.argv[2:]
        command = verb + [_word(word) for word in words]
        fire.Fire(Commands, command=command, name="python -m mod_components")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
