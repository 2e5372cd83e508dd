"""The EMA teacher: a frozen, slowly following copy of the student's encoder and heads."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle

from mod_components.errors import SettingsError
from mod_components.mod.step import MODHandler, step_was_made
from mod_components.mod.views import MaskedViews
from mod_components.networks import compile_all, is_compiled, parts, plain_module

__all__ = ["EMATeacher", "ema_update", "momentum_at"]


def momentum_at(step: int, steps: int, start: float) -> float:
    """The teacher's momentum, rising from ``start`` to 1 by a cosine over the training.

    Args:
        step: optimizer steps done before this update.
        steps: optimizer steps of the whole training.
        start: momentum of the first update.
    """
    done = min(step / max(steps, 1), 1.0)
    return 1 - (1 - start) * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student: θ' ← m θ' + (1 − m) θ; buffers are copied by value.

    Args:
        teacher: module to change; its parameters and buffers are looked up in the student by name.
        student: module to follow; what it alone has is ignored.
        momentum: m.
    """
    parameters = dict(student.named_parameters())
    pairs = [(p, parameters[name]) for name, p in teacher.named_parameters() if name in parameters]
    # PyTorch's own update of averaged models, for all parameters in one call
    if pairs:
        sources = [parameter.to(target) for target, parameter in pairs]
        get_ema_multi_avg_fn(momentum)([target for target, _ in pairs], sources, None)
    buffers = dict(student.named_buffers())
    for name, kept in teacher.named_buffers():
        if name in buffers:
            kept.copy_(buffers[name])


class EMATeacher(MODHandler):
    """Teacher of the Online Tokenizer (method, section 6).

    The copy is made when training starts (after weights are loaded and the network is wrapped) and
    holds only the modules that the tapped feature depends on. It runs in eval mode and without
    gradients, keeps its weights in float32, and is updated once for every optimizer step that was
    really made: not for micro-batches of an accumulated step, nor for steps that a gradient scaler
    skipped.

    Args:
        views: the handler that makes the views; gives network, tap and feature.
        momentum: the first momentum; it rises to 1 by a cosine over the whole training.
    """

    NOTED = ("momentum",)

    views: MaskedViews
    students: dict[str, nn.Module]
    _hook: RemovableHandle | None

    def __init__(self, views: MaskedViews, momentum: float = 0.996) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise SettingsError(f"teacher momentum must lie between 0 and 1, got {momentum}.")
        self.refer(views=views, students={}, _hook=None)
        self.momentum = momentum
        self.steps = 0
        self.per_epoch = 0
        self.copies = nn.ModuleDict()
        self.total_steps = 1

    def follow(self, name: str, module: nn.Module) -> None:
        """Let the teacher keep a copy of one more module, such as a projection head.

        Args:
            name: key of the copy in :attr:`copies`.
            module: the student's module.
        """
        self.students[name] = module

    def attach(self, engine: SupervisedTrainer) -> None:
        """Copy at the start, run after each forward pass, follow after each optimizer step."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._run)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._unhook())

    def build(self) -> None:
        """Make the copies (once)."""
        if self.copies:
            return
        network = plain_module(self.views.network)
        self.students["encoder"] = network
        device = next(network.parameters()).device
        self.copies["encoder"] = _pruned_copy(network, self.views.encoder_modules)
        for name, student in self.students.items():
            if name not in self.copies:
                self.copies[name] = copy.deepcopy(student)
        tap = self.views.tap.name
        if any(is_compiled(part) for part in parts(network, tap)):  # a copy is not
            compile_all(parts(self.copies["encoder"], tap))
        # float32 whatever the student is: an EMA's small steps vanish in half precision
        self.to(device=device, dtype=torch.float32).eval().requires_grad_(False)

    def update(self) -> None:
        """Follow the student by one optimizer step."""
        momentum = momentum_at(self.steps, self.total_steps, self.momentum)
        for name, teacher in self.copies.items():
            ema_update(teacher, self.students[name], momentum)
        if idist.get_world_size() > 1:  # each process has its own running statistics
            for buffer in self.copies.buffers():
                if buffer.is_floating_point():
                    dist.broadcast(buffer, 0)
        self.steps += 1

    def train(self, mode: bool = True) -> EMATeacher:
        """A teacher stays in eval mode: no dropout, no drop path, running statistics."""
        return super().train(False)

    def get_extra_state(self) -> dict[str, int]:
        """Optimizer steps followed so far, which set the momentum, and those of an epoch."""
        return {"steps": self.steps, "per_epoch": self.per_epoch}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the number of optimizer steps, counted as if epochs had always had today's."""
        now = self.per_epoch
        self.steps, self.per_epoch = int(state["steps"]), int(state.get("per_epoch", 0))
        if now:
            self._count_in_epochs_of(now)

    def _count_in_epochs_of(self, steps: int) -> None:
        if self.per_epoch:  # other batches, processes or accumulation before
            self.steps = round(self.steps * steps / self.per_epoch)
        self.per_epoch = steps

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore the copies, making them first when training has not started yet."""
        self.build()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _start(self, engine: SupervisedTrainer) -> None:
        self.build()
        accumulated = getattr(engine, "accumulation_steps", 1)
        self._count_in_epochs_of(math.ceil(engine.state.epoch_length / accumulated))
        self.total_steps = self.per_epoch * engine.state.max_epochs
        self._unhook()  # of a run that ended in an error
        self.refer(_hook=engine.optimizer.register_step_post_hook(self._follow))

    def _follow(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if step_was_made(optimizer):
            self.update()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self.refer(_hook=None)

    @torch.no_grad()
    def _run(self, engine: SupervisedTrainer) -> None:
        if (step := engine.state.mod) is not None:
            step.teacher = self.feature(step.views)

    @torch.no_grad()
    def feature(self, x: Tensor) -> Tensor:
        """The teacher's encoder feature (B, C, d, h, w) of images (B, C_in, D, H, W)."""
        return self.views.tap(self.copies["encoder"], x)


def _pruned_copy(network: nn.Module, needed: set[str]) -> nn.Module:
    """Copy a network without the modules that no tapped pass calls."""
    # a stand-in for what is not copied keeps the network's attributes in place
    memo: dict[int, Any] = {
        id(module): nn.Identity() for name, module in network.named_modules() if name not in needed
    }
    return copy.deepcopy(network, memo)
