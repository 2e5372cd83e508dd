"""Bundles copied to a temporary folder, a small data set, and runs in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mod_components.data import make_sample
from tests.backbones import BACKBONES, small_settings

REPOSITORY = Path(__file__).resolve().parents[2]

# pytest's processes have a core each; alone, a run takes two
THREADS = 2 if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") == "1" else 1

Run = Callable[..., subprocess.CompletedProcess[str]]

# what CI does for one of MONAI's networks and one of ours alone; for the others it is slow
OF_TWO = (
    "test_two_processes_train",
    "test_baseline_trains",
    "test_resume",
    "test_the_examples_of_the_how_to",
)
TWO = ("swinunetr", "segmamba")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep CI short."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {})
        # pytest hands the hook every test of the run, with whatever parameters those have
        backbone = str(values.get("backbone") or values.get("name", "")).removesuffix("_mod")
        if getattr(item, "originalname", "") in OF_TWO and backbone not in TWO:
            item.add_marker(pytest.mark.slow)


def small(name: str) -> list[str]:
    """Options that make a bundle's network small, for tests alone."""
    settings = small_settings(name)
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with four cases: three to train, one to validate."""
    return make_sample(tmp_path_factory.mktemp("data") / "sample", cases=4)


@pytest.fixture(scope="session", params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    """Short name of each backbone in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def bundle(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the committed bundle, without what a training left in it."""
    target = tmp_path_factory.mktemp("bundles") / f"{backbone}_mod"
    source = REPOSITORY / "bundles" / f"{backbone}_mod"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("models", "eval"))
    return target


def run_python(
    *arguments: str, cwd: Path, threads: int = THREADS, timeout: int = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` as a user would, and return what it printed."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_bundle(
    config: str | Sequence[Path] | Path, *arguments: str, cwd: Path, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m monai.bundle run`` on one config file or an overlay of several."""
    if isinstance(config, (list, tuple)):
        config = str([str(path) for path in config])
    run = ["-m", "monai.bundle", "run", "--config_file", str(config), *arguments]
    return run_python(*run, cwd=cwd, **settings)  # type: ignore[arg-type]


def short_training(backbone: str, data: Path, epochs: int) -> list[str]:
    """Options of a training that takes seconds."""
    return [
        *("--dataset_dir", str(data), "--epochs", str(epochs), "--val_interval", "1"),
        *("--roi_size", "[64,64,64]", "--batch_size", "1", "--num_workers", "0"),
        *("--cache_rate", "1.0", "--overlap", "0.1"),
        *small(backbone),
    ]


@pytest.fixture(scope="session")
def trained(backbone: str, bundle: Path, small_sample: Path) -> Path:
    """The bundle after a short training of a small network with all of MOD."""
    done = run_bundle(
        bundle / "configs" / "train.json",
        *short_training(backbone, small_sample, epochs=2),
        cwd=bundle.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return bundle
