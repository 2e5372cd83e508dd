"""One of two processes dies: the run ends at once and says so, or torchrun resumes it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.bundles.kills import Training, end_all, kill, of_session, unreadable
from tests.bundles.test_resume import assert_same

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch's gloo backend"
)

EPOCHS = 4
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master-port=29638")


# rank 1 dies as a killed process does, or hangs; rank 0 waits for it
ONE_IS_LOST = """
import datetime, os, sys, torch, torch.distributed as dist
from mod_components.errors import show_plain_errors
rank, folder, signal = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
show_plain_errors()
limit = datetime.timedelta(seconds=60)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2, timeout=limit
)
group = dist.new_group(timeout=datetime.timedelta(seconds=3))
dist.barrier()
if rank == 1:
    os.kill(os.getpid(), signal)
dist.all_reduce(torch.ones(1), group=group)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_the_message_of_a_lost_process(sent: signal.Signals, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_IS_LOST, str(rank), str(tmp_path), str(int(sent))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    message = processes[0].communicate(timeout=120)[1]
    processes[1].kill()
    processes[1].communicate(timeout=60)
    assert processes[0].returncode == 1
    assert "error: another process of this training has died or hangs" in message
    assert "Traceback" not in message


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture
def training(small_sample: Path, tmp_path: Path) -> Training:
    return two(tmp_path / "run", small_sample)


def two(root: Path, data: Path) -> Training:
    made = Training(root, "segmamba", data, "--epochs", str(EPOCHS))
    made.configs.append(made.configs[0].with_name("multi_gpu_train.json"))
    return made


def process_of_rank(launcher: subprocess.Popen[bytes], rank: int) -> int:
    """Process id of a rank that torchrun has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher.pid and f"RANK={rank}" in (
                (folder / "environ").read_text().split("\0")
            ):
                return int(folder.name)
        except (OSError, IndexError):
            continue
    raise AssertionError(f"no process of rank {rank}")


def in_epoch_two(training: Training, *processes: subprocess.Popen[bytes]) -> None:
    """Wait until the first epoch is saved, and a little longer."""
    while not training.has("models/last.pt"):
        assert all(process.poll() is None for process in processes), training.output()
        time.sleep(0.05)
    time.sleep(1.5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_ends_the_run(victim: int, training: Training) -> None:
    launcher = training.start(launcher=TORCHRUN)
    in_epoch_two(training, launcher)
    os.kill(process_of_rank(launcher, victim), signal.SIGKILL)
    assert launcher.wait(60) == 1
    root_cause = training.output().partition("Root Cause")[2]
    assert f"rank      : {victim} " in root_cause
    assert "Signal 9 (SIGKILL)" in root_cause
    assert of_session(launcher.pid) == []
    assert training.saved_epoch() == 1
    assert unreadable(training.root) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_processes_started_by_hand_end_too(victim: int, training: Training) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29637"}
    processes = [
        training.start(**shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
    ]
    in_epoch_two(training, *processes)
    kill(processes[victim])
    assert processes[1 - victim].wait(60) == 1
    errors = [line for line in training.log.read_text().splitlines() if "error: " in line]
    assert len(errors) == 1
    assert "another process of this training has died" in errors[0]
    assert "--resume true" in errors[0]
    assert "Traceback" not in training.output()
    assert training.saved_epoch() == 1
    assert unreadable(training.root) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_torchrun_restarts_and_the_run_resumes(small_sample: Path, tmp_path: Path) -> None:
    """Killed before the first save it begins anew; later it goes on. The weights are the same.

    An earlier run's files lie in the folder, and must not be taken for this one's.
    """
    alone = two(tmp_path / "alone", small_sample)
    assert alone.start(launcher=TORCHRUN).wait(600) == 0, alone.output()
    training = two(tmp_path / "run", small_sample)
    shutil.copytree(alone.root / "models", training.root / "models")
    launcher = training.start(launcher=(*TORCHRUN, "--max-restarts=2"))
    log = training.log
    while log.read_text().count("training:   0%") < 1:  # before the first step has ended
        assert launcher.poll() is None, training.output()
        time.sleep(0.01)
    os.kill(process_of_rank(launcher, 1), signal.SIGKILL)
    moved = training.root / "models" / "previous" / "last.pt"
    while not (moved.is_file() and training.has("models/last.pt")):
        assert launcher.poll() is None, training.output()
        time.sleep(0.05)
    time.sleep(1.5)
    saved = training.saved_epoch()
    os.kill(process_of_rank(launcher, 0), signal.SIGKILL)
    assert launcher.wait(600) == 0, training.output()
    text = log.read_text()
    assert text.count("by this launch yet, starting as the command says") == 1
    assert text.count(f"last.pt after epoch {saved} of {EPOCHS}") == 1
    for file in ("last.pt", "model.pt"):
        assert_same(alone.state(file), training.state(file), file)
    table = (training.root / "eval" / "train.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == [str(e + 1) for e in range(EPOCHS)]
