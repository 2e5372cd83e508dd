"""Trainings in processes of their own, the moments at which they are killed, and what is left."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from tests.bundles.conftest import REPOSITORY, small

_started: list[subprocess.Popen[bytes]] = []


def end_all() -> None:
    """End what a test that failed has left running."""
    while _started:
        process = _started.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # each leads a group, as it leads a session
        process.wait(60)


class Training:
    """``python -m monai.bundle run`` of a small network, in a folder of its own.

    Args:
        root: the folder; made here.
        name: backbone.
        data: folder with cases.
        options: more of the command line.
    """

    def __init__(self, root: Path, name: str, data: Path, *options: str) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.options = [
            *("--dataset_dir", str(data), "--bundle_root", str(root), "--val_interval", "1"),
            *("--roi_size", "[64,64,64]", "--batch_size", "1", "--num_workers", "0"),
            *("--overlap", "0.1", "--cache_rate", "1.0", *small(name), *options),
        ]
        self.configs = [REPOSITORY / "bundles" / f"{name}_mod" / "configs" / "train.json"]
        self.log = root / "log.txt"

    def start(
        self, *more: str, launcher: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a process, the leader of a new session; its output goes to ``log.txt``."""
        configs = [str(path) for path in self.configs]
        command = [
            *(sys.executable, *launcher, "-m", "monai.bundle", "run"),
            *("--config_file", str(configs if len(configs) > 1 else configs[0])),
            *(*self.options, *more),
        ]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                stdout=log,
                stderr=log,
                env={**variables, **environment},
                start_new_session=True,
            )
        _started.append(process)
        return process

    def finish(self, *more: str) -> None:
        """Train to the end."""
        assert self.start(*more).wait(900) == 0, self.output()

    def output(self) -> str:
        """The end of what the processes have printed."""
        return self.log.read_text(errors="replace")[-4000:]

    def state(self, file: str = "last.pt") -> dict[str, object]:
        """What a checkpoint holds, without the name of the launch that wrote it."""
        content = torch.load(self.root / "models" / file, weights_only=True)
        content.pop("launch", None)
        return dict(content)

    def saved_epoch(self) -> int:
        """The last epoch that was saved; 0 before the first."""
        return int(self.state()["epoch"]) if self.has("models/last.pt") else 0  # type: ignore[call-overload]

    def has(self, path: str) -> bool:
        """Whether there is such a file below the root."""
        return (self.root / path).is_file()


class Moment:
    """When to kill a process: once something is written, and a little later.

    Args:
        name: what the process is doing then.
        patterns: files below the training's root; one that matches, and has changed since the
            process started, is the sign.
        later: seconds to wait then, at most.
    """

    def __init__(self, name: str, *patterns: str, later: float) -> None:
        self.name = name
        self.patterns = patterns
        self.later = later

    def wait(self, training: Training, process: subprocess.Popen[bytes], delay: float) -> None:
        """Wait for the sign and, in proportion to ``delay`` from 0 to 1, some time after it."""
        started = time.time_ns() - 10**7  # times of files are as coarse
        while self.patterns and not any(
            _changed(path) > started for p in self.patterns for path in training.root.glob(p)
        ):
            assert process.poll() is None, f"{self.name}: ended before\n{training.output()}"
            time.sleep(0.001)
        time.sleep(delay * self.later)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def rows(table: Path) -> int:
    """Epochs in a table."""
    return max(0, len(table.read_text().splitlines()) - 1) if table.is_file() else 0


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process alone; whatever it has started must end by itself soon."""
    session = process.pid
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 30
    while left := of_session(session):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


def of_session(session: int) -> list[str]:
    """Processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) == session and after_name[0] not in "ZX":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, IndexError):  # gone meanwhile
            continue
    return found


def unreadable(root: Path) -> list[str]:
    """Files of a run under a final name that can't be read, and more leftovers than there may be.

    Temporary names begin with a dot and end in ``.tmp``. They may hold anything, but there is at
    most one for each file, which the next run writes anew.
    """
    bad = []
    for path in (p for p in root.rglob("*") if p.is_file() and p.name != "log.txt"):
        if path.name.startswith(".") and path.name.endswith(".tmp"):
            continue
        try:
            if path.suffix == ".pt" and "cache" in path.relative_to(root).parts:
                assert zipfile.ZipFile(path).testzip() is None
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                with open(path, newline="") as file:
                    table = list(csv.DictReader(file))
                assert all(None not in row and None not in row.values() for row in table)
            elif path.suffix == ".png":
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        except Exception as error:  # whatever it is, it must not happen
            bad.append(f"{path}: {error!r}")
    return bad


def leftovers(root: Path) -> list[str]:
    """Files under temporary names."""
    return [str(path.relative_to(root)) for path in root.rglob(".*.tmp")]
