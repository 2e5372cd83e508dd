"""Transforms that do something else are described otherwise; the same ones alike."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Lambdad, NormalizeIntensityd, SpatialPadd

from mod_components.data.describe import describe

FACTOR = 1.0
logger = logging.getLogger("tests.describe")


def test_descriptions_tell_parameters_apart() -> None:
    def above(limit: float) -> Any:
        return Lambdad("image", lambda x: x > limit)

    assert describe(above(1.0)) == describe(above(1.0))
    different = [
        above(1.0),
        above(2.0),
        Lambdad("image", lambda x: x > 1),
        Lambdad("image", lambda x: x > 2),
        Lambdad("image", np.array([1, 2]).take),  # cannot be described
        NormalizeIntensityd("image", subtrahend=np.array([1.0, 2.0])),
        NormalizeIntensityd("image", subtrahend=np.array([1.0, 3.0])),
        SpatialPadd("image", 4),
        SpatialPadd("image", 4, mode="reflect"),
    ]
    texts = [str(describe(transform)) for transform in different]
    assert len(set(texts)) == len(texts)


def in_config(function: str, **values: Any) -> str:
    """A description of a function that stands in a config."""
    transform = {"_target_": "Lambdad", "keys": "image", "func": function}
    parser = ConfigParser({"transform": transform, "top": {"inner": 7}, **values})
    return str(describe(parser.get_parsed_content("transform")))


@pytest.mark.parametrize(
    "function",
    [
        "$lambda x: x * @scale",
        "$lambda x: [y * @scale for y in x]",
        "$lambda x: (lambda y: y + @top#inner * @scale)(x)",
        "$lambda x, *, by=@scale: x * by",
        "$lambda x, by=@scale: x * by",
    ],
)
def test_values_of_a_config_tell_its_functions_apart(function: str) -> None:
    assert in_config(function, scale=1) == in_config(function, scale=1, unused=3)
    assert in_config(function, scale=1) != in_config(function, scale=5)


def test_functions_of_a_config_that_name_each_other() -> None:
    def both(factor: int) -> str:
        return in_config("$lambda x: @other(x)", other="$lambda x: x * @factor", factor=factor)

    assert both(1) == both(1)
    assert both(1) != both(5)
    # a text of its own name is no end of it
    assert "lambda" in in_config("$lambda x: x['transform'] * @scale", scale=1)


def scaled(x: Any) -> Any:
    logger.debug("scaled")
    return functools.reduce(lambda a, b: a + b * FACTOR, x)


def test_what_stands_around_a_function_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = str(describe(scaled))
    assert str(describe(scaled)) == first
    assert " at 0x" not in first  # an address would be another in each process
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert str(describe(scaled)) != first
