"""A resumed run goes on from its place, at the rate that its own settings give there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from mod_components.handlers.restore import restore

RATE, WARMUP = 1e-3, 4


def a_run(total: int, rate: float = RATE, decay: float = 0.05) -> tuple[Any, Any]:
    layer = nn.Linear(3, 2)
    groups = [
        {"params": [layer.weight], "weight_decay": decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=rate)
    return optimizer, WarmupCosineSchedule(optimizer, WARMUP, total, warmup_multiplier=0.1)


def steps(optimizer: Any, schedule: Any, number: int) -> list[float]:
    """The rate of each step."""
    rates = []
    for _ in range(number):
        rates.append(optimizer.param_groups[0]["lr"])
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
    return rates


def saved(optimizer: Any, schedule: Any) -> dict[str, Any]:
    return copy.deepcopy({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})


def resumed(
    state: dict[str, Any], *run: Any, steps: tuple[int, int] = (1, 1), **settings: Any
) -> tuple[Any, Any]:
    optimizer, schedule = a_run(*run, **settings)
    restore("optimizer", optimizer, state["optimizer"], steps)
    restore("lr_scheduler", schedule, state["schedule"], steps)
    return optimizer, schedule


@pytest.mark.parametrize("done", [2, WARMUP, 11, 20])
@pytest.mark.parametrize(
    "settings", [{}, {"rate": 1e-4}], ids=["the same rate", "a tenth of the rate"]
)
@pytest.mark.parametrize("total", [20, 40], ids=["the same length", "twice as long"])
def test_rates_are_those_of_a_run_that_had_these_settings_all_along(
    done: int, settings: dict[str, float], total: int
) -> None:
    first = a_run(20)
    steps(*first, done)
    went_on = steps(*resumed(saved(*first), total, **settings), total - done)
    assert went_on == steps(*a_run(total, **settings), total)[done:]


def test_with_other_steps_an_epoch_rates_go_on_from_as_many_epochs() -> None:
    """4 of 10 epochs of 2 steps were made; of 5 steps an epoch they are 20 of 50."""
    first = a_run(20)
    steps(*first, 8)
    went_on = steps(*resumed(saved(*first), 50, steps=(8, 20)), 30)
    assert went_on == steps(*a_run(50), 50)[20:]


def test_a_schedule_of_epochs_does_not_count_steps() -> None:
    first = a_run(10)
    steps(*first, 4)  # a step of the schedule after each epoch of 2
    went_on = steps(*resumed(saved(*first), 10, steps=(8, 20)), 6)
    assert went_on == steps(*a_run(10), 10)[4:]


def test_moments_and_steps_of_the_optimizer_are_the_saved_ones() -> None:
    first = a_run(20)
    steps(*first, 7)
    optimizer, schedule = resumed(saved(*first), 20)
    assert schedule.last_epoch == 7
    for own, other in zip(
        optimizer.state_dict()["state"].values(),
        first[0].state_dict()["state"].values(),
        strict=True,
    ):
        assert own["step"] == other["step"] == 7
        assert torch.equal(own["exp_avg"], other["exp_avg"])


def test_weight_decay_is_the_runs_own_group_by_group() -> None:
    first = a_run(20)
    steps(*first, 3)
    optimizer, _ = resumed(saved(*first), 20, decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_a_schedule_without_a_formula_carries_on_the_saved_rate() -> None:
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = CosineAnnealingLR(optimizer, 10)
    steps(optimizer, schedule, 5)
    state = saved(optimizer, schedule)
    other = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    later = CosineAnnealingLR(other, 10)
    restore("optimizer", other, state["optimizer"])
    restore("lr_scheduler", later, state["schedule"])
    assert steps(other, later, 5) == steps(optimizer, schedule, 5)


def test_a_plain_lambda_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    state = schedule.state_dict() | {"last_epoch": 3}
    restore("lr_scheduler", schedule, state)
    assert optimizer.param_groups[0]["lr"] == 1 / 4
    assert not recwarn.list


def test_a_state_of_something_else_is_refused() -> None:
    optimizer, schedule = a_run(20)
    with pytest.raises(ValueError, match="no state of lr_scheduler: it lacks last_epoch"):
        restore("lr_scheduler", schedule, optimizer.state_dict())
