"""Fixtures shared by all tests: where real cases lie, and a quiet, seeded torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what is dear to make run in one process: a file's, or a backbone's."""
    for item in items:
        backbone = getattr(getattr(item, "callspec", None), "params", {}).get("backbone")
        shares = backbone and "trained" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group(backbone if shares else item.nodeid.split("::")[0]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with labelled BraTS cases: $MOD_DATA or ../shared/data; skips without one."""
    folder = Path(os.environ.get("MOD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real BraTS cases at {folder} (set MOD_DATA to a folder that has them)")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    state = torch.get_rng_state()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(False)  # what a bundle run in this process has set
