"""Settings as a config or a command line gives them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mod_components.errors import CheckpointError, SettingsError
from mod_components.settings import (
    check_training_settings,
    checkpoint_list,
    flag,
    network_record,
    number,
    whole_number,
)


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


@pytest.mark.parametrize("roi_size", [(64, 64, 64), (64, 32, 32), (32, 96, 32), [128, 128, 32]])
def test_crops_that_a_network_trains_on(roi_size: list[int]) -> None:
    check_training_settings(1, roi_size, 1, multiple=32, smallest=64)


@pytest.mark.parametrize(
    "roi_size",
    [
        *[(32, 32, 32), (64, 64), (64, 64, 48), (64, 0, 64), (64, -32, 64), (128, 32, 16)],
        *[96, "64", [64, 64, "64"], (64.0, 64, 64)],
    ],
)
def test_crops_that_it_does_not_train_on(roi_size: Any) -> None:
    message = r"^roi_size must be three multiples of 32, the largest at least 64, got "
    with pytest.raises(SettingsError, match=message):
        check_training_settings(1, roi_size, 1, multiple=32, smallest=64)


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size"),
    [("epochs", 0, 1), ("batch_size", 1, 0), ("batch_size", 1, "two")],
)
def test_trainings_without_steps(name: str, epochs: Any, batch_size: Any) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} must be a whole number from 1, got .*\.$"):
        check_training_settings(epochs, (64, 64, 64), batch_size, multiple=32, smallest=64)
