"""The cases of a step, and what is gathered of them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
from ignite.engine import Engine

from mod_components.handlers import cases
from mod_components.handlers.cases import decollated, gather_by_case


def test_pairs_of_input_and_output() -> None:
    engine = Engine(lambda *_: None)
    engine.state.batch, engine.state.output = [{"case": "a"}, {"case": "b"}], [{"x": 1}, {"x": 2}]
    pairs = list(decollated(engine, "Somebody"))
    assert pairs == [({"case": "a"}, {"x": 1}), ({"case": "b"}, {"x": 2})]
    engine.state.output = {"x": torch.zeros(2)}
    with pytest.raises(TypeError, match="Somebody needs an evaluator with decollate=True"):
        list(decollated(engine, "Somebody"))


def test_one_process_has_its_own_sorted() -> None:
    assert list(gather_by_case({"b": 1, "a": 2}).items()) == [("a", 2), ("b", 1)]


def test_the_first_process_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather(everyone: list[object], own: object) -> None:
        everyone[:] = [own, {"a": 9, "c": 3}]

    monkeypatch.setattr(cases.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    assert gather_by_case({"b": 1, "a": 2}) == {"a": 2, "b": 1, "c": 3}
