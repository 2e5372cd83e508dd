"""A training that is killed and resumed ends with the weights of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.backbones import BACKBONES
from tests.bundles.conftest import small

EPOCHS = 3


def start(
    bundle: Path, data: Path, root: Path, backbone: str, workers: int, *more: str
) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "monai.bundle", "run"),
        *("--config_file", str(bundle / "configs" / "train.json")),
        *("--dataset_dir", str(data), "--bundle_root", str(root), "--epochs", str(EPOCHS)),
        *("--val_interval", "2", "--roi_size", "[64,64,64]", "--batch_size", "1"),
        *("--num_workers", str(workers), "--overlap", "0.1", "--cache_rate", "1.0"),
        *small(backbone),
        *more,
    ]
    log = open(root / "log.txt", "ab")  # noqa: SIM115  (the process writes to it)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command, cwd=root, stdout=log, stderr=log, env=environment)


def in_an_epoch(root: Path) -> bool:
    """The first epoch is done and saved; the second has begun."""
    saved = (root / "models" / "last.pt").is_file()
    if saved:
        time.sleep(2.0)
    return saved


def in_a_save(root: Path) -> bool:
    """A checkpoint after the first is half-written."""
    models = root / "models"
    return (models / "last.pt").is_file() and (models / ".last.pt.tmp").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "workers"), [(in_an_epoch, 0), (in_a_save, 2)])
@pytest.mark.parametrize("name", BACKBONES)
def test_killed_and_resumed(
    name: str, moment: Callable[[Path], bool], workers: int, small_sample: Path, tmp_path: Path
) -> None:
    bundle = Path(__file__).resolve().parents[2] / "bundles" / f"{name}_mod"
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for root in (alone, killed):
        root.mkdir()
    assert start(bundle, small_sample, alone, name, workers).wait(900) == 0

    process = start(bundle, small_sample, killed, name, workers)
    while not moment(killed):
        assert process.poll() is None, (killed / "log.txt").read_text()[-2000:]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    epoch = torch.load(killed / "models" / "last.pt", weights_only=True)["epoch"]
    assert 1 <= epoch < EPOCHS
    assert start(bundle, small_sample, killed, name, workers, "--resume", "true").wait(900) == 0
    assert f"after epoch {epoch} of {EPOCHS}" in (killed / "log.txt").read_text()

    for file in ("last.pt", "model.pt"):
        expected = torch.load(alone / "models" / file, weights_only=True)
        resumed = torch.load(killed / "models" / file, weights_only=True)
        assert_same(expected, resumed, file)
    rows = (killed / "eval" / "train.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]


def assert_same(expected: object, resumed: object, name: str) -> None:
    """Compare nested states, tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(resumed, torch.Tensor)
        assert torch.equal(expected, resumed), name
    elif isinstance(expected, dict):
        assert isinstance(resumed, dict)
        assert expected.keys() == resumed.keys(), name
        for key in expected:
            assert_same(expected[key], resumed[key], f"{name}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert isinstance(resumed, (list, tuple))
        for index, (one, other) in enumerate(zip(expected, resumed, strict=True)):
            assert_same(one, other, f"{name}/{index}")
    else:
        assert expected == resumed, name
