"""Settings as a config or a command line gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mod_components.errors import CheckpointError
from mod_components.settings import checkpoint_list, flag, network_record


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
