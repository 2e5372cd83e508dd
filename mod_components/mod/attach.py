"""Puts MOD's components on a trainer, and into its optimizer and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from mod_components.mod.step import MODHandler, flat_parameters

__all__ = ["Attach", "noted", "parameter_groups", "state_objects"]

ORDER = ("views", "teacher", "tokenizer", "predictor", "average")
NEEDS = {
    "views": (),
    "teacher": ("views",),
    "tokenizer": ("views", "teacher"),
    "predictor": ("views",),
    "average": (),
}
# by the last part of their names: mask fill, position embeddings, class tokens, what Mamba and
# UNETR++ keep out of the decay; biases and norms are told by their one axis
UNDECAYED = (
    "fill",
    "position",
    "relative_position_bias_table",
    "cls_token",
    "A_log",
    "temperature",
    "temperature2",
)


class Attach:
    """The one handler that brings in whichever of MOD's components there are.

    It must be the first entry of the trainer's handlers. With none of the components it records
    the segmentation loss and changes nothing: the plain baseline.

    With several processes it keeps the components alike: parameters are broadcast from rank 0 at
    the start, gradients are averaged after each backward pass, before the optimizer's step
    (``DistributedDataParallel`` does the same for the network).

    Args:
        mod: the components by name: any of ``views``, ``teacher``, ``tokenizer``, ``predictor``,
            ``average``.
    """

    def __init__(self, mod: Mapping[str, MODHandler] | None = None) -> None:
        self.components = _present(mod)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach the components in the order in which they need each other.

        Args:
            engine: a MONAI ``SupervisedTrainer``.
        """
        engine.state.mod = None
        engine.add_event_handler(Events.STARTED, self._share)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, _record_segmentation_loss)
        for component in self.components.values():
            component.attach(engine)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._average_gradients)

    def _share(self, _engine: SupervisedTrainer) -> None:
        if idist.get_world_size() > 1:
            for component in self.components.values():
                for tensor in (*component.parameters(), *component.buffers()):
                    dist.broadcast(tensor.data, src=0)

    def _average_gradients(self, engine: SupervisedTrainer) -> None:
        if idist.get_world_size() == 1 or engine.state.mod is None:
            return
        parameters = flat_parameters(self.components.values())
        if not parameters:
            return
        # a parameter without a gradient counts as 0: every rank must send the same length
        flat = torch.cat([_gradient(p).flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= idist.get_world_size()
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()


def parameter_groups(
    network: nn.Module, mod: Mapping[str, MODHandler] | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Split the trainable parameters of network and components by weight decay.

    Biases, norm layers, the mask fill, position embeddings and the state matrices of Mamba are not
    decayed (method, section 7).

    Args:
        network: the network in training.
        mod: MOD's components by name.
        weight_decay: decay of all other parameters.

    Returns:
        Two groups for a ``torch.optim`` optimizer.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in (network, *_present(mod).values()):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            last = name.rpartition(".")[2]
            plain = parameter.ndim <= 1 or last in UNDECAYED or "position_embed" in last
            (undecayed if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def state_objects(mod: Mapping[str, MODHandler] | None, **others: Any) -> dict[str, Any]:
    """Name everything that a checkpoint must hold to resume.

    Args:
        mod: MOD's components by name.
        others: more objects with ``state_dict()``, such as network, optimizer, scheduler.

    Returns:
        One flat mapping; components are named ``mod.<name>``.
    """
    return {**others, **{f"mod.{name}": handler for name, handler in _present(mod).items()}}


def noted(mod: Mapping[str, MODHandler] | None) -> dict[str, dict[str, Any]]:
    """What each component was built with, for a run's record: defaults do not stay what they are.

    Args:
        mod: MOD's components by name.

    Returns:
        Numbers and short words by component, as JSON has them.
    """
    return {name: handler.noted() for name, handler in _present(mod).items()}


def _present(mod: Mapping[str, MODHandler] | None) -> dict[str, MODHandler]:
    components = {name: handler for name, handler in (mod or {}).items() if handler is not None}
    unknown = set(components) - set(ORDER)
    if unknown:
        raise ValueError(f"mod: unknown components {sorted(unknown)}; known are {list(ORDER)}.")
    for name in components:
        if missing := [other for other in NEEDS[name] if other not in components]:
            raise ValueError(f"mod: {name} needs {' and '.join(missing)}, which is not there.")
    return {name: components[name] for name in ORDER if name in components}


def _record_segmentation_loss(engine: SupervisedTrainer) -> None:
    engine.state.output["loss_seg"] = engine.state.output["loss"].detach()


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
