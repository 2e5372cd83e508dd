"""Attributes that are set for a while are as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from mod_components.networks.overrides import attributes_set


def test_values_are_put_back_in_reverse_also_after_an_error() -> None:
    layer = nn.Dropout(0.5)
    before = dict(vars(layer))

    def changes() -> Iterator[tuple[nn.Module, str, Any]]:
        yield layer, "p", 0.1
        yield layer, "forward", lambda x: x + 1
        yield layer, "p", 0.2

    def fail() -> None:
        assert layer.p == 0.2
        assert layer(1) == 2  # PyTorch calls what stands there
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), attributes_set(changes()):
        fail()
    assert vars(layer) == before


def test_an_error_among_the_changes_leaves_nothing() -> None:
    layer = nn.Dropout(0.5)

    def changes() -> Iterator[tuple[nn.Module, str, Any]]:
        yield layer, "p", 0.1
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"), attributes_set(changes()):
        pass
    assert layer.p == 0.5
