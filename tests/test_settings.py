"""Yes-or-no settings as a config or a command line gives them."""

from __future__ import annotations

import pytest

from mod_components.settings import flag


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
