"""What MOD's handlers share: their base class and the state of one training step."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from mod_components.errors import SettingsError

__all__ = [
    "DECAYS",
    "MODHandler",
    "MODStep",
    "all_reduce_mean",
    "check_decay",
    "loss_share",
    "step_was_made",
]

DECAYS: dict[str, Callable[[float], float]] = {
    "none": lambda left: 1.0,
    "linear": lambda left: left,
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
}
"""Ways in which MOD's losses fade out: from the share of the training that is left to a factor."""


@dataclass
class MODStep:
    """Tensors of one training step, kept in ``engine.state.mod`` from forward to backward.

    B counts the batch's crops and the unlabelled ones that came along. With ``views="one"`` there
    is one view, and every 2B below is B.

    Attributes:
        views: μ and ν stacked on the batch axis (2B, 4, D, H, W): μ of all samples, then ν.
        masks: M_μ and M_ν over voxels (2B, 1, D, H, W), 1 where masked.
        student: the student's feature of the masked views (2B, C, d, h, w).
        token_masks: m_i (2B, N) with N = d·h·w.
        teacher: the teacher's feature of the unmasked views (2B, C, d, h, w), if there is a
            teacher.
        clean: with ``views="one"``, the student's feature of the batch's own crops as the
            segmentation sees them (without the unlabelled ones).
    """

    views: Tensor
    masks: Tensor
    student: Tensor
    token_masks: Tensor
    teacher: Tensor | None = None
    clean: Tensor | None = None


class MODHandler(nn.Module):
    """A component of MOD: an Ignite handler that may own parameters.

    ``parameters()`` goes into the optimizer, ``state_dict()`` into the checkpoint. References to
    the network or to other handlers are kept with :meth:`refer`, outside torch's registry, so that
    each parameter has one owner.
    """

    NOTED: ClassVar[tuple[str, ...]] = ()
    """Attributes that a run's record holds: what it was built with, numbers and short words."""

    def noted(self) -> dict[str, Any]:
        """What the component was built with, its own defaults too, as JSON has it."""
        found = {name: getattr(self, name) for name in self.NOTED}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}

    def attach(self, engine: SupervisedTrainer) -> None:
        """Register the component's event handlers.

        Args:
            engine: a MONAI ``SupervisedTrainer`` (it fires ``IterationEvents``).
        """
        raise NotImplementedError

    def refer(self, **objects: Any) -> None:
        """Keep references that are no submodules of this one."""
        for name, value in objects.items():
            object.__setattr__(self, name, value)

    def forward(self, *args: Any) -> Any:
        """Handlers are driven by events and are not called."""
        raise NotImplementedError("a MOD component is an Ignite handler: attach it to a trainer.")


def loss_share(engine: SupervisedTrainer, warmup_epochs: float, decay: str = "none") -> float:
    """Share of its full weight that a loss of MOD has: a linear rise, and a fall if wanted.

    Args:
        engine: the trainer in a training step (its iteration counts from 1).
        warmup_epochs: length of the rise from 0 to 1; 0 means 1 from the first step.
        decay: one of :data:`DECAYS`, which falls from 1 at the first step to 0 after the last one.
    """
    state = engine.state
    length = state.epoch_length or 1
    steps = warmup_epochs * length
    rise = 1.0 if steps <= 0 else min(1.0, state.iteration / steps)
    if decay == "none":  # an engine that knows no end will do
        return rise
    return rise * DECAYS[decay](1 - (state.iteration - 1) / (state.max_epochs * length))


def check_decay(decay: str) -> str:
    """A way to fade out, if there is one of that name.

    Raises:
        SettingsError: if there is none.
    """
    if decay not in DECAYS:
        raise SettingsError(f"mod_decay must be one of {', '.join(DECAYS)}, got {decay!r}.")
    return decay


def step_was_made(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer whose step hook is called has moved the weights.

    Hooks are called for exactly the steps that are made, but for fused optimizers, which a gradient
    scaler always calls and which skip the step themselves.

    Args:
        optimizer: the one that calls.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is None or not bool(found_inf)


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean of a tensor over all processes (itself when there is one)."""
    if idist.get_world_size() > 1:
        # NCCL takes no tensors of the CPU
        tensor = tensor.to(idist.device(), copy=True)
        dist.all_reduce(tensor)
        tensor /= idist.get_world_size()
    return tensor


def flat_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Trainable parameters of several modules, each once, in a fixed order."""
    seen: dict[nn.Parameter, None] = {}
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                seen.setdefault(parameter)
    return list(seen)


def sample_keys(engine: SupervisedTrainer, batch: int) -> list[int]:
    """A number for each sample that does not depend on how the batch is spread over processes.

    Args:
        engine: the trainer in a step; ``engine.state.batch["case"]`` names the cases if it can.
        batch: number of samples in this process.
    """
    data = engine.state.batch
    cases = data.get("case") if isinstance(data, dict) else None
    if isinstance(cases, (list, tuple)) and len(cases) == batch:
        before: Counter[str] = Counter()
        keys = []
        for case in map(str, cases):
            keys.append(zlib.crc32(case.encode(), before[case]))  # two crops of a case differ
            before[case] += 1
        return keys
    return [idist.get_rank() * batch + index for index in range(batch)]


def as_plain_tensor(image: Tensor) -> Tensor:
    """Drop MONAI's metadata, whose bookkeeping costs time in every operation."""
    return image.as_tensor() if hasattr(image, "as_tensor") else image
