"""Settings as a config or a command line gives them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mod_components.errors import CheckpointError, SettingsError
from mod_components.settings import checkpoint_list, flag, network_record, number, whole_number


@pytest.mark.parametrize("value", [True, 1, "true", "True", " TRUE ", "yes", "on", "1"])
def test_flag_true(value: bool | int | str) -> None:
    assert flag(value) is True


@pytest.mark.parametrize("value", [False, 0, None, "false", "False", "no", "off", "0", "none", ""])
def test_flag_false(value: bool | int | str | None) -> None:
    assert flag(value) is False


@pytest.mark.parametrize("value", ["maybe", "2", "truee", "-"])
def test_flag_refuses_anything_else(value: str) -> None:
    with pytest.raises(ValueError, match=f"got '{value}'"):
        flag(value)


def test_checkpoints_in_every_form(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"fold_{k}" / "model.pt") for k in range(3)]
    for path in paths:
        Path(path).parent.mkdir()
        Path(path).touch()
    assert checkpoint_list(paths[0]) == paths[:1]
    assert checkpoint_list(Path(paths[0])) == paths[:1]
    assert checkpoint_list(paths) == paths
    assert checkpoint_list(tuple(paths)) == paths
    assert checkpoint_list(f"{paths[2]}, {paths[0]}") == [paths[2], paths[0]]
    assert checkpoint_list(str(tmp_path / "fold_*" / "model.pt")) == paths
    assert checkpoint_list([str(tmp_path / "fold_[01]" / "*.pt"), paths[2]]) == paths
    comma = tmp_path / "a,b.pt"
    comma.touch()
    assert checkpoint_list(str(comma)) == [str(comma)]
    home = [str(Path("~").expanduser() / name) for name in ("a.pt", "b.pt")]
    assert checkpoint_list("~/a.pt,~/b.pt") == home
    assert checkpoint_list("not/yet.pt") == ["not/yet.pt"]  # who reads it says what is missing


@pytest.mark.parametrize(("value", "message"), [("nowhere/*.pt", "no file matches"), ([], "no ch")])
def test_no_checkpoint_is_told(value: str | list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint_list(value)


def test_outside_of_a_config_there_is_no_record_of_a_network() -> None:
    assert network_record(object()) == {}


@pytest.mark.parametrize(("value", "expected"), [(3, 3), ("3", 3), (3.0, 3), ("1e3", 1000)])
def test_whole_numbers_may_come_as_text(value: Any, expected: int) -> None:
    found = whole_number("every", value, 1)
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize("value", ["two", None, 0, 1.5, "nan", math.inf, [1]])
def test_what_is_no_whole_number_is_told(value: Any) -> None:
    with pytest.raises(SettingsError, match="every must be a whole number from 1, got"):
        whole_number("every", value, 1)


def test_numbers_from_a_least_one() -> None:
    assert number("clip_norm", "0.5") == 0.5
    with pytest.raises(SettingsError, match="clip_norm must be a number from 0, got -1"):
        number("clip_norm", -1)
