"""The EMA teacher: how it is copied, when it follows, and that nothing else moves it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import nn

from mod_components.mod import EMATeacher, MODHandler, parameter_groups
from mod_components.mod.teacher import ema_update, momentum_at
from tests.toys import ToyNetwork, toy_components, toy_data, toy_trainer


class On:
    """Calls a function at an event."""

    def __init__(self, event: Any, function: Callable[[Any], Any]) -> None:
        self.event, self.function = event, function

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(self.event, self.function)


def toy(**settings: Any) -> tuple[ToyNetwork, dict[str, MODHandler], EMATeacher]:
    network = ToyNetwork(**settings)
    mod = toy_components(network)
    teacher = mod["teacher"]
    assert isinstance(teacher, EMATeacher)
    return network, mod, teacher


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.996), (25, 1 - 0.004 * (1 + math.sqrt(0.5)) / 2), (50, 0.998), (100, 1.0), (120, 1.0)],
)
def test_momentum_rises_to_one_by_a_cosine(step: int, expected: float) -> None:
    assert momentum_at(step, 100, 0.996) == pytest.approx(expected, abs=1e-9)


def test_ema_by_hand_by_name_and_with_buffers_by_value() -> None:
    teacher, student = nn.BatchNorm1d(2), nn.Sequential()
    student = nn.BatchNorm1d(2)
    student.extra = nn.Linear(1, 1)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([1.0, 2.0]))
        student.weight.copy_(torch.tensor([3.0, -2.0]))
        student.running_mean.copy_(torch.tensor([5.0, 6.0]))
        student.num_batches_tracked.fill_(7)
    ema_update(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), torch.tensor([1.2, 1.6]))
    assert torch.equal(teacher.running_mean, torch.tensor([5.0, 6.0]))
    assert teacher.num_batches_tracked == 7
    assert teacher.running_mean.data_ptr() != student.running_mean.data_ptr()
    student.running_mean.fill_(9)
    assert teacher.running_mean[0] == 5


def test_ema_follows_a_half_precision_student_in_float32() -> None:
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1).half()
    nn.init.constant_(teacher.weight, 1.0)
    nn.init.constant_(student.weight, 2.0)
    ema_update(teacher, student, 0.9999)
    assert teacher.weight.dtype == torch.float32
    assert teacher.weight.item() == pytest.approx(1.0001, abs=1e-6)  # 1 in half precision


def test_copies_hold_encoder_and_heads_without_gradients() -> None:
    network, _, teacher = toy()
    assert not teacher.copies
    teacher.build()
    assert set(teacher.copies) == {"encoder", "token_head", "class_head"}
    names = {name.split(".")[0] for name, _ in teacher.copies["encoder"].named_parameters()}
    assert names == {"stem", "encoder"}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.dtype == torch.float32 for p in teacher.parameters())
    own = {p.data_ptr() for p in network.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in teacher.parameters())
    before = [id(p) for p in teacher.parameters()]
    teacher.build()
    assert [id(p) for p in teacher.parameters()] == before
    x = torch.randn(1, 4, 16, 16, 16)
    expected = network.eval().encoder(network.stem(x))
    torch.testing.assert_close(teacher.feature(x), expected.detach(), rtol=1e-5, atol=1e-6)


def test_copies_are_made_when_training_starts() -> None:
    """So that weights loaded after the components were made are the teacher's too."""
    network, mod, teacher = toy()
    with torch.no_grad():
        network.stem[0].weight.fill_(0.25)
    seen = []
    first = On(
        IterationEvents.FORWARD_COMPLETED,
        lambda _: seen.append(teacher.copies["encoder"].stem[0].weight.clone()),
    )
    toy_trainer(network, mod, handlers=[first]).run()
    assert torch.all(seen[0] == 0.25)


def test_updates_equal_a_loop_over_a_whole_training() -> None:
    """Every step: the teacher's weights and buffers after the optimizer's step, by hand."""
    network, mod, teacher = toy(batch_norm=True)
    tokenizer = mod["tokenizer"]
    students = {
        "encoder": network,
        "token_head": tokenizer.token_head,
        "class_head": tokenizer.class_head,
    }
    expected: dict[str, torch.Tensor] = {}
    step = 0

    def start(_engine: Any) -> None:
        for key, module in teacher.copies.items():
            for name, p in module.named_parameters():
                expected[f"{key}.{name}"] = p.double().clone()

    def check(_engine: Any) -> None:
        nonlocal step
        momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / 4) + 1) / 2  # 2 epochs of 2 steps
        for key, module in teacher.copies.items():
            theirs = dict(students[key].named_parameters())
            for name, p in module.named_parameters():
                full = f"{key}.{name}"
                expected[full] = momentum * expected[full] + (1 - momentum) * theirs[name].double()
                torch.testing.assert_close(p.double(), expected[full], rtol=1e-5, atol=1e-6)
        norm, copied = network.stem[1], teacher.copies["encoder"].stem[1]
        assert torch.equal(copied.running_mean, norm.running_mean)
        assert copied.num_batches_tracked == norm.num_batches_tracked == step + 1
        assert copied.running_mean.data_ptr() != norm.running_mean.data_ptr()
        step += 1

    handlers = [On(Events.STARTED, start), On(Events.ITERATION_COMPLETED, check)]
    toy_trainer(network, mod, epochs=2, handlers=handlers).run()
    assert step == teacher.steps == teacher.total_steps == 4
    moved = (teacher.copies["encoder"].stem[0].weight - network.stem[0].weight).abs().max()
    assert moved > 1e-3


def test_teacher_stays_in_eval_mode_and_takes_no_gradient() -> None:
    network, mod, teacher = toy(dropout=0.5)
    modes, gradients = [], []

    def look(engine: Any) -> None:
        engine.network.train()
        teacher.train()
        modes.append([m.training for m in teacher.modules() if m is not teacher])
        gradients.extend(p.grad for p in teacher.parameters())
        assert engine.state.mod.teacher.requires_grad is False
        assert engine.state.mod.student.requires_grad

    toy_trainer(network, mod, handlers=[On(IterationEvents.BACKWARD_COMPLETED, look)]).run()
    assert len(modes) == 2
    assert not any(any(mode) for mode in modes)
    assert gradients
    assert all(gradient is None for gradient in gradients)
    assert network.training


def test_one_update_per_optimizer_step_with_accumulation() -> None:
    network, mod, teacher = toy()
    counts: list[int] = []
    handler = On(Events.ITERATION_COMPLETED, lambda _: counts.append(teacher.steps))
    trainer = toy_trainer(
        network, mod, data=toy_data(5), batch_size=1, accumulation_steps=2, epochs=2,
        handlers=[handler],
    )  # fmt: skip
    trainer.run()
    # 5 micro-batches: steps after the second, the fourth and the last of each epoch
    assert counts == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]
    assert teacher.total_steps == 6


@pytest.mark.parametrize(("batch", "accumulated"), [(1, 2), (2, 2)])
def test_a_resumed_count_is_in_steps_of_the_optimizer(batch: int, accumulated: int) -> None:
    """With accumulation, micro-batches may be as many as steps were, and steps fewer."""
    _, _, before = toy()
    before.build()
    before.steps, before.per_epoch = 12, 4  # three epochs of four steps
    network, mod, teacher = toy()
    trainer = toy_trainer(
        network, mod, data=toy_data(4), batch_size=batch, accumulation_steps=accumulated, epochs=4,
        handlers=[On(Events.STARTED, lambda _: teacher.load_state_dict(before.state_dict()))],
    )  # fmt: skip
    counts: list[int] = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda _: counts.append(teacher.steps)
    )
    trainer.run()
    an_epoch = 4 // (batch * accumulated)
    assert counts == [3 * an_epoch]
    assert teacher.total_steps == 4 * an_epoch


class SkippingScaler:
    """A gradient scaler that found an overflow in every second step."""

    def __init__(self) -> None:
        self.calls = 0

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls += 1
        if self.calls % 2 == 0:
            optimizer.step()

    def update(self) -> None:
        pass


def test_no_update_when_the_scaler_skipped_the_step() -> None:
    network, mod, teacher = toy()
    counts: list[int] = []
    trainer = toy_trainer(
        network, mod, epochs=2,
        handlers=[On(Events.ITERATION_COMPLETED, lambda _: counts.append(teacher.steps))],
    )  # fmt: skip

    def replace(engine: Any) -> None:  # the trainer makes its scaler when it runs
        engine.amp, engine.scaler = True, SkippingScaler()

    trainer.add_event_handler(Events.STARTED, replace)
    trainer.run()
    assert counts == [0, 1, 1, 2]


def test_no_update_when_a_fused_optimizer_skipped_the_step() -> None:
    """A scaler calls such an optimizer always and leaves the finding in ``found_inf``."""
    network, mod, teacher = toy()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    trainer = toy_trainer(network, mod, optimizer=optimizer)
    teacher._start(trainer)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    for found, steps in ((0.0, 1), (1.0, 1), (0.0, 2)):
        before = network.decoder.weight.clone()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        assert torch.equal(network.decoder.weight, before) == bool(found)
        assert teacher.steps == steps


def test_a_second_run_does_not_update_twice() -> None:
    network, mod, teacher = toy()
    trainer = toy_trainer(network, mod)
    trainer.run()
    assert teacher.steps == 2
    trainer.optimizer.step()
    assert teacher.steps == 2  # outside a run nothing follows
    trainer.state.max_epochs = 2
    trainer.run()
    assert teacher.steps == 4


def test_a_run_after_an_error_does_not_update_twice() -> None:
    network, mod, teacher = toy()

    def fail(_engine: Any) -> None:
        raise RuntimeError("out of memory")

    trainer = toy_trainer(network, mod, handlers=[On(IterationEvents.BACKWARD_COMPLETED, fail)])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.run()
    assert teacher.steps == 0
    toy_trainer(network, mod, optimizer=trainer.optimizer).run()
    assert teacher.steps == 2


def test_state_dict_restores_copies_and_steps() -> None:
    network, mod, teacher = toy()
    toy_trainer(network, mod).run()
    saved = copy.deepcopy(teacher.state_dict())
    _, _, fresh = toy()
    fresh.load_state_dict(saved)  # before training starts: the copies are made first
    assert fresh.steps == 2
    assert set(fresh.state_dict()) == set(saved)
    for (name, a), (_, b) in zip(teacher.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not any(p.requires_grad for p in fresh.parameters())
    assert not any(name.startswith("copies.encoder.decoder") for name in saved)


@pytest.mark.parametrize("built", [False, True])
def test_teacher_is_never_in_the_optimizer(built: bool) -> None:
    network, mod, teacher = toy()
    if built:
        teacher.build()
    groups = parameter_groups(network, mod, 0.05)
    ids = {id(p) for group in groups for p in group["params"]}
    teacher.build()
    assert list(teacher.parameters())
    assert ids.isdisjoint(id(p) for p in teacher.parameters())


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_outside_its_range_is_told(momentum: float) -> None:
    _, mod, _ = toy()
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(mod["views"], momentum)  # type: ignore[arg-type]
