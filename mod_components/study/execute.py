"""A study's runs, one after another or several at a time, here or on a cluster."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_components.errors import SettingsError, TrainingError
from mod_components.files import save_json
from mod_components.release import backbones, render
from mod_components.study.data import study_datalist
from mod_components.study.plan import Plan, Run
from mod_components.study.plan_file import PLAN, read_plan
from mod_components.study.prepare import check_networks, run_settings
from mod_components.study.run import carry_out, is_finished

__all__ = ["Study", "open_study"]

logger = logging.getLogger("mod_components.study")

TABLE = "table.json"


@dataclass(frozen=True)
class Study:
    """A plan, the folder of its runs and the cases that they share.

    Attributes:
        plan: the plan.
        folder: the study's folder.
        datalist: the study's cases and folds.
    """

    plan: Plan
    folder: Path
    datalist: Mapping[str, Any]

    def pending(self) -> list[Run]:
        """Runs that are not finished.

        Raises:
            SettingsError: if one is finished with other settings than the plan's, or on other
                cases.
        """
        return [run for run in self.plan.runs() if not self._is_finished(run)]

    def _is_finished(self, run: Run) -> bool:
        return is_finished(self.plan, run, self.folder, self.datalist)

    def carry_out(self, jobs: int = 1) -> list[Path]:
        """Run what has not run yet, on this machine.

        A run that fails does not keep the others from running.

        Args:
            jobs: runs at a time; the cores are shared out among them.

        Returns:
            The new ``finished.json`` files.

        Raises:
            TrainingError: at the end, naming every run that failed.
        """
        threads = max(1, _cores() // jobs) if jobs > 1 else 0
        done: list[Path | Exception | None] = []
        with ThreadPoolExecutor(jobs) as pool:
            for stage in self.stages():
                done += pool.map(lambda run: self.attempt(run, threads), stage)
        if failed := [str(result) for result in done if isinstance(result, Exception)]:
            raise TrainingError("\n\n".join(failed))
        return [path for path in done if isinstance(path, Path)]

    def stages(self) -> list[list[Run]]:
        """Runs that are not finished, in lists: what one begins with stands in a list before."""
        depths: dict[int, list[Run]] = {}
        for run in self.pending():
            depth, source = 0, self.plan.source(run)
            while source is not None:
                depth, source = depth + 1, self.plan.source(source)
            depths.setdefault(depth, []).append(run)
        return [depths[depth] for depth in sorted(depths)]

    def attempt(
        self, run: Run, threads: int = 0, lock_needed: bool = False
    ) -> Path | Exception | None:
        """Carry out one run; its error where it fails, None where another process is at it."""
        with _claimed(self.folder / run.folder, lock_needed) as lock:
            if lock is None:
                logger.info("%s is being run by another process", run.folder)
                return None
            try:
                if self._is_finished(run):  # meanwhile, by another process
                    return None
                self._check_source(run)
                logger.info("%s", run.folder)
                return carry_out(
                    self.plan, run, self.folder, self.datalist, threads, keep_open=[lock]
                )
            except Exception as error:  # the others are to run all the same
                logger.error("%s failed", run.folder)
                return error

    def _check_source(self, run: Run) -> None:
        source = self.plan.source(run)
        if source is not None and not self._is_finished(source):
            raise TrainingError(
                f"{run.folder} begins with the weights of {source.folder}, which is not finished: "
                "run the study again when it is."
            )

    def submit(self, parameters: Mapping[str, Any]) -> list[str]:
        """Hand each run that is not finished to SLURM as a job of its own.

        Args:
            parameters: of submitit's ``AutoExecutor``, such as ``{"slurm_partition": "gpu",
                "gpus_per_node": 1, "timeout_min": 600}``.

        Returns:
            The jobs' numbers.

        Raises:
            SettingsError: where submitit or SLURM is not there, or it has no such parameter.
        """
        try:
            import submitit
        except ImportError:
            raise SettingsError(
                "a study on a cluster needs submitit: pip install mod-components[cluster]."
            ) from None
        if not {"timeout_min", "slurm_time"} & set(parameters):  # submitit's own is 5 minutes
            raise SettingsError(
                'cluster: say how long a run may take, such as "timeout_min": 600. One that takes '
                "longer is cut, and goes on when the study is submitted again."
            )
        own = {"name": f"study_{self.plan.name}", **parameters}
        try:  # without a cluster's name submitit would start all jobs here, at once
            executor = submitit.AutoExecutor(folder=self.folder / "jobs", cluster="slurm")
            executor.update_parameters(**own)
            with executor.batch():
                jobs = [executor.submit(_job, self, run) for run in self.ready()]
        except (RuntimeError, TypeError, NameError, ValueError, OSError) as error:
            raise SettingsError(f"cluster: submitit does not take {own} here: {error}") from error
        return [str(job.job_id) for job in jobs]

    def ready(self) -> list[Run]:
        """Runs that are not finished, that no process is at and that need not wait for others."""
        found = []
        for run in self.pending():
            source = self.plan.source(run)
            if source is None or self._is_finished(source):
                with _claimed(self.folder / run.folder) as lock:
                    found += [] if lock is None else [run]
        return found


def _job(study: Study, run: Run) -> str:
    result = study.attempt(run, lock_needed=True)  # other nodes may be told to do the same run
    if isinstance(result, Exception):
        raise result
    return str(result)


def open_study(
    path: str | os.PathLike[str], folder: str | os.PathLike[str] = "", dataset_dir: str = ""
) -> Study:
    """Read a plan, render its bundles and check all of it before anything runs.

    Args:
        path: the plan's JSON file.
        folder: the study's folder; by default one beside the plan, with the plan's name.
        dataset_dir: folder of the data set, instead of the plan's.

    Raises:
        DataError: if plan or data set can't be read.
        SettingsError: if something in the plan does not fit the bundles, the data set or what has
            run already.
    """
    plan = read_plan(path, dataset_dir)
    root = Path(os.path.abspath(folder or Path(path).parent / plan.name))
    _render_bundles(plan, root / "bundles")
    study = Study(plan, root, study_datalist(plan))
    pending = study.pending()
    for run in pending:
        run_settings(plan, run, root, study.datalist)
    check_networks(plan, pending, root)
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    content |= {"dataset_dir": plan.dataset_dir, "table": ""}
    if plan.table:  # beside the plan, so that a study can be moved and shared
        content["table"] = TABLE
        if not (root / TABLE).exists() or not os.path.samefile(plan.table, root / TABLE):
            shutil.copyfile(plan.table, root / TABLE)
    save_json(content, root / PLAN)
    return study


def _render_bundles(plan: Plan, folder: Path) -> None:
    table = backbones()
    if plan.table:
        table |= backbones(plan.table)
    wanted = {name: name.removesuffix("_mod") for name in plan.bundles}
    known = {f"{short}_mod" for short in table}
    if unknown := [name for name in wanted if name not in known]:
        there = ", ".join(f"{short}_mod" for short in table)
        raise SettingsError(f"bundles: no {', '.join(unknown)}; there are {there}.")
    render(folder, table={short: table[short] for short in wanted.values()})


def _cores() -> int:
    """Cores that this process may use; not every system tells."""
    mine = getattr(os, "sched_getaffinity", None)
    return len(mine(0)) if mine else os.cpu_count() or 1


@contextmanager
def _claimed(folder: Path, needed: bool = False) -> Iterator[int | None]:
    """A lock that says that this process alone works in a folder, or None where another does.

    It ends with this process and all that hold its file, too.

    Raises:
        TrainingError: where the lock is needed and the file system has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if needed:
                raise TrainingError(
                    f"{folder} can't be locked ({error}), so that two jobs could train in it at "
                    "once: put the study on a file system with locks, or run it in one process."
                ) from error
            logger.warning("%s can't be locked (%s): start it in one process alone", folder, error)
        yield file.fileno()
