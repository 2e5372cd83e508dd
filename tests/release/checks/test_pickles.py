"""What counts as a pickle in a file of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mod_components.release.checks.bundle import Bundle
from mod_components.release.checks.pickles import check_pickles

OLD_PICKLE = b"cposix\nsystem\n(S'true'\ntR."


def test_numbers_that_look_like_a_pickle_are_numbers(tmp_path: Path) -> None:
    """torch unpickles one member of its zips, never the numbers in the others."""
    (tmp_path / "models").mkdir()
    numbers = torch.tensor(list(OLD_PICKLE), dtype=torch.uint8)
    torch.save({"weight": numbers}, tmp_path / "models" / "model.pt")
    assert OLD_PICKLE in (tmp_path / "models" / "model.pt").read_bytes()
    assert check_pickles(Bundle(tmp_path)) == []


@pytest.mark.parametrize("name", ["docs/a.txt", "models/model.pt"])
def test_the_same_bytes_as_a_file_are_a_pickle(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(OLD_PICKLE)
    (problem,) = check_pickles(Bundle(tmp_path))
    assert (problem.file, problem.kind) == (name, "pickle")
    assert "posix system" in str(problem)
