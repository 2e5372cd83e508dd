"""What MOD's handlers share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from mod_components.errors import SettingsError
from mod_components.mod.step import (
    as_plain_tensor,
    check_decay,
    flat_parameters,
    loss_share,
    sample_keys,
)
from tests.toys import ToyNetwork, toy_components


def state(**values: Any) -> SimpleNamespace:
    """Stands for an engine with this state."""
    return SimpleNamespace(state=SimpleNamespace(**values))


@pytest.mark.parametrize(
    ("iteration", "epochs", "expected"),
    [(1, 2, 0.05), (10, 2, 0.5), (20, 2, 1.0), (21, 2, 1.0), (1, 0, 1.0), (1, 0.5, 0.2)],
)
def test_ramp_rises_linearly_over_the_first_epochs(
    iteration: int, epochs: float, expected: float
) -> None:
    engine = state(iteration=iteration, epoch_length=10)
    assert loss_share(engine, epochs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("decay", "first", "middle", "last"),
    [("none", 1, 1, 1), ("linear", 1, 0.5, 0.025), ("cosine", 1, 0.5, 0.0015413)],
)
def test_decay_falls_from_the_first_step_to_the_end(
    decay: str, first: float, middle: float, last: float
) -> None:
    for iteration, expected in ((1, first), (21, middle), (40, last)):
        engine = state(iteration=iteration, epoch_length=10, max_epochs=4)
        assert loss_share(engine, 0, decay) == pytest.approx(expected, rel=1e-4)
    engine = state(iteration=21, epoch_length=10, max_epochs=4)
    assert loss_share(engine, 4, decay) == pytest.approx(middle * 21 / 40)


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"mod_decay must be one of none, linear, cosine, got"):
        check_decay("exponential")


def test_keys_follow_the_case_and_not_its_place() -> None:
    one, two = sample_keys(state(batch={"case": ["a", "b"]}), 2)
    assert one != two
    assert sample_keys(state(batch={"case": ["b", "a"]}), 2) == [two, one]
    assert sample_keys(state(batch={"case": ["a"]}), 1) == [one]


def test_two_crops_of_a_case_have_keys_of_their_own() -> None:
    keys = sample_keys(state(batch={"case": ["a", "a", "b", "a"]}), 4)
    assert len(set(keys)) == 4
    assert sample_keys(state(batch={"case": ["b", "a", "a"]}), 3) == [keys[2], keys[0], keys[1]]


@pytest.mark.parametrize("batch", [{}, {"case": ["a"]}, {"case": "ab"}, [1, 2]])
def test_keys_without_usable_names_are_places(batch: Any) -> None:
    assert sample_keys(state(batch=batch), 2) == [0, 1]


def test_metadata_is_dropped() -> None:
    image = MetaTensor(torch.ones(1, 2), meta={"a": 1})
    plain = as_plain_tensor(image)
    assert type(plain) is Tensor
    assert plain.data_ptr() == image.data_ptr()
    assert as_plain_tensor(plain) is plain


def test_referred_modules_have_one_owner() -> None:
    network = ToyNetwork()
    mod = toy_components(network)
    own = {id(p) for p in network.parameters()}
    names = [(name, id(p)) for name, c in mod.items() for p in c.parameters()]
    assert len(names) == len({key for _, key in names})
    assert not own & {key for _, key in names}


def test_flat_parameters_are_unique_and_trainable() -> None:
    shared, frozen = nn.Linear(2, 3), nn.Linear(2, 2).requires_grad_(False)
    listed = flat_parameters([nn.Sequential(shared, frozen), shared])
    assert [id(p) for p in listed] == [id(shared.weight), id(shared.bias)]


def test_a_component_is_not_called() -> None:
    with pytest.raises(NotImplementedError, match="attach it"):
        toy_components(ToyNetwork())["views"](torch.zeros(1))
