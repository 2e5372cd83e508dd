"""Reading of settings that may come from a command line."""

from __future__ import annotations

__all__ = ["flag"]


def flag(value: bool | int | str | None) -> bool:
    """Read a yes-or-no setting.

    ``--use_mod false`` reaches a config as the string ``"false"``, which Python counts as true.

    Args:
        value: a boolean, 0, 1, None, or "true", "false", "yes", "no", "on", "off", "1", "0".

    Raises:
        ValueError: for anything else.
    """
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0", "none", ""):
        return False
    raise ValueError(f"expected true or false, got {value!r}.")
