"""One small sample data set for all tests of the checks; they work on copies of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mod_components.data import make_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of synthetic brains, two for training and one for validation."""
    return make_sample(tmp_path_factory.mktemp("checks") / "sample", cases=3)
