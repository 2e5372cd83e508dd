"""SIGKILL at thirty random moments, and full disks: no file is corrupt, at most an epoch is lost.

The moments are drawn from a fixed seed and printed, so that a failure can be repeated.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mod_components.data import make_sample
from mod_components.files import file_digest
from tests.bundles.kills import Moment, Training, end_all, kill, leftovers, rows, unreadable
from tests.bundles.test_resume import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = 6
EPOCHS = 6

STARTING = Moment("starting up", later=7.0)
STEPPING = Moment("in a step", "models/last.pt", later=3.0)
VALIDATING = Moment("in validation", "eval/train.csv", later=1.0)
# an epoch that is not the best saves the second alone
SAVING = Moment("in a save", "models/.model.pt.tmp", "models/.last.pt.tmp", later=0.005)
SAVING_LAST = Moment("in a save of last.pt", "models/.last.pt.tmp", later=0.03)
CACHING = Moment("caching", "cache/*/.*.tmp", later=0.02)
MOVING = Moment("moving an earlier run's files", "models/previous", later=0.03)
SIX = [STARTING, STEPPING, VALIDATING, SAVING, SAVING_LAST, STEPPING]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases to train, one to validate."""
    return make_sample(tmp_path_factory.mktemp("data") / "sample", cases=3)


def killed_at(moment: Moment, training: Training, draw: random.Random) -> None:
    """Go on with a training and kill it; check what must hold then."""
    before = training.saved_epoch()
    process = training.start(*(("--resume", "true") if before else ()))
    delay = draw.random()
    moment.wait(training, process, delay)
    kill(process)
    saved = training.saved_epoch()
    done = rows(training.root / "eval" / "train.csv")
    print(f"{moment.name}, {delay:.3f} of {moment.later} s after it: epoch {saved} saved")
    assert before <= saved <= done <= saved + 1 or saved == 0
    if before and moment is not STARTING:
        assert f"models/last.pt after epoch {before} of {EPOCHS}" in training.log.read_text()
    assert unreadable(training.root) == []
    assert len(leftovers(training.root)) <= 2  # of one file beside the checkpoints, and of one case


def assert_undisturbed(training: Training, alone: Training, epochs: int) -> None:
    """The training has ended as one that was left alone, and nothing unfinished lies about."""
    for file in ("last.pt", "model.pt"):
        assert_same(alone.state(file), training.state(file), file)
    table = (training.root / "eval" / "train.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == [str(e + 1) for e in range(epochs)]
    assert unreadable(training.root) == []
    assert leftovers(training.root) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["swinunetr", "segmamba"])
def test_killed_again_and_again(name: str, workers: int, data: Path, tmp_path: Path) -> None:
    """24 of the 30 kills, and three more while the cache on disk is written."""
    draw = random.Random(f"{SEED} {name} {workers}")
    options = ("--epochs", str(EPOCHS), "--num_workers", str(workers))
    alone = Training(tmp_path / "alone", name, data, *options)
    undisturbed = alone.start()
    cache = tmp_path / "killed" / "cache"
    cached = (name, workers) == ("segmamba", 2)
    options += ("--cache_dir", str(cache)) if cached else ()
    training = Training(tmp_path / "killed", name, data, *options)
    for moment in [CACHING] * 3 * cached + draw.sample(SIX, len(SIX)):
        killed_at(moment, training, draw)
        for leftover in cache.glob("*/.*.tmp"):  # younger ones may be another run's
            os.utime(leftover, (0, 0))
    training.finish(*(("--resume", "true") if training.saved_epoch() else ()))
    assert undisturbed.wait(900) == 0, alone.output()
    assert_undisturbed(training, alone, EPOCHS)


def test_killed_while_an_earlier_run_is_moved(data: Path, tmp_path: Path) -> None:
    """The last three: each file of the run before is whole, where it was or in ``previous/``."""
    draw = random.Random(f"{SEED} moving")
    training = Training(tmp_path / "run", "swinunetr", data, "--epochs", "1")
    training.finish()
    models = training.root / "models"
    names = ("model.pt", "last.pt", "training.json", "datalist.json")
    earlier = {name: file_digest(models / name) for name in names}
    for _ in range(3):
        process = training.start("--seed", "7")
        delay = draw.random()
        MOVING.wait(training, process, delay)
        kill(process)
        print(f"{MOVING.name}, {delay:.3f} of {MOVING.later} s after its begin")
        for name, digest in earlier.items():
            places = (models / name, models / "previous" / name)
            assert digest in [file_digest(place) for place in places], name
        assert unreadable(training.root) == []
    training.finish("--seed", "7")
    assert {name: file_digest(models / "previous" / name) for name in names} == earlier
    assert {name: file_digest(models / name) for name in names}.keys() == earlier.keys()
    assert file_digest(models / "last.pt") != earlier["last.pt"]
    assert leftovers(training.root) == []


class Disk:
    """A small file system in memory, whose free space can be set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("size=1g", "tmpfs", str(folder), kind=("-t", "tmpfs"))

    def _mount(self, options: str, *arguments: str, kind: tuple[str, ...] = ()) -> None:
        command = ["mount", *kind, "-o", options, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def leave(self, megabytes: float) -> None:
        """Shrink or grow it to so much free space."""
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        self._mount(f"remount,size={used + int(megabytes * 2**20)}", str(self.folder))

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here ({error}): run as root")
    yield made
    made.close()


def assert_one_error(training: Training, *words: str) -> None:
    """The output ends with one message that names the file and the mend."""
    text = training.log.read_text()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text[-4000:]
    assert all(word in errors[0] for word in words), errors
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("free", "file"), [(5, "models/last.pt"), (0.3, "eval/previews/"), (0.01, "eval/")]
)
def test_full_disk(free: float, file: str, data: Path, tmp_path: Path, disk: Disk) -> None:
    options = ("--epochs", "3")
    alone = Training(tmp_path / "alone", "segmamba", data, *options)
    undisturbed = alone.start()
    training = Training(disk.folder / "run", "segmamba", data, *options)
    training.log = tmp_path / "log.txt"  # a user's terminal is on no disk
    process = training.start()
    while not training.has("models/last.pt"):
        assert process.poll() is None, training.output()
        time.sleep(0.05)
    disk.leave(free)
    assert process.wait(300) == 1
    assert_one_error(training, file, "No space left", "--resume true")
    assert training.saved_epoch() == 1
    assert unreadable(training.root) == leftovers(training.root) == []
    disk.leave(200)
    training.finish("--resume", "true")
    assert undisturbed.wait(300) == 0, alone.output()
    assert_undisturbed(training, alone, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_full_disk_of_the_cache(data: Path, tmp_path: Path, disk: Disk, workers: int) -> None:
    disk.leave(1)
    cache = disk.folder / "cache"
    options = ("--epochs", "1", "--cache_dir", str(cache), "--num_workers", str(workers))
    options += ("--cache_rate", "0.0")  # else the cache is filled before workers start
    training = Training(tmp_path / "run", "segmamba", data, *options)
    assert training.start().wait(300) == 1
    assert_one_error(training, str(cache), "No space left")
    disk.leave(200)
    training.finish()
    assert leftovers(cache) == []
