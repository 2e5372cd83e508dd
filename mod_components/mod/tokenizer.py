"""The Online Tokenizer: self-distillation of tokens and class token by the EMA teacher."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor

from mod_components.losses import class_loss, teacher_probabilities, token_loss
from mod_components.mod.heads import Centre, ClassMemory, ProjectionHead
from mod_components.mod.health import Health, vague
from mod_components.mod.step import MODHandler, MODStep, check_decay, loss_share
from mod_components.mod.teacher import EMATeacher

__all__ = ["OnlineTokenizer", "teacher_temperature"]

logger = logging.getLogger("mod_components.mod")


def teacher_temperature(done: float, temperatures: Sequence[float], warmup: float = 0.1) -> float:
    """τ_t, rising linearly over the first part of training.

    Args:
        done: share of the training that is done, 0 to 1.
        temperatures: first and last temperature.
        warmup: share of the training that the rise takes.
    """
    first, last = temperatures
    return first + (last - first) * min(1.0, done / warmup)


class OnlineTokenizer(MODHandler):
    """Adds w · ramp · λ_OT · (α L_efm + β L_cls) to the loss (MOD, Eq. 1 to 3).

    After each forward pass the teacher's heads assign every token of μ and ν, and the average
    of the tokens as class token, to prototypes; the student must give the same from the masked
    views: tokens of the same view where masked, class tokens across views.

    Health figures of every epoch go to ``engine.state.metrics``; see
    :class:`~mod_components.mod.health.Health`.

    Args:
        teacher: the EMA teacher.
        weight: w, the weight of MOD beside the segmentation loss.
        warmup_epochs: length of the ramp.
        decay: how the weight falls until the end, one of
            :data:`~mod_components.mod.step.DECAYS`.
        strength: λ_OT.
        alpha: α, weight of the token loss.
        beta: β, weight of the class loss.
        prototypes: K of the token head.
        class_prototypes: K of the class head; with a few samples a step it can be kept in use only
            if it is small.
        hidden: width of the heads' MLP.
        bottleneck: width of the heads' bottleneck.
        student_temperature: τ_s.
        teacher_temperatures: τ_t at the start and after the first tenth of training.
        token_momentum: momentum of the tokens' centre; by default 0.9, or 1 − 2 (1 − m) where the
            teacher's first momentum m is so low that it would outrun that.
        class_momentum: momentum of the class token's centre and memory; by default 0.99, or as low
            as above.
        centre_by_position: whether each position of a crop has a token centre of its own, so that
            tokens can't be told apart by where they are alone.
    """

    NOTED = (
        *("weight", "warmup_epochs", "decay", "strength", "alpha", "beta"),
        *("student_temperature", "teacher_temperatures"),
        *("token_momentum", "class_momentum", "centre_by_position"),
    )

    teacher: EMATeacher

    def __init__(
        self,
        teacher: EMATeacher,
        *,
        weight: float = 1.0,
        warmup_epochs: float = 2,
        decay: str = "none",
        strength: float = 1.0,
        alpha: float = 1.5,
        beta: float = 0.5,
        prototypes: int = 512,
        class_prototypes: int = 64,
        hidden: int = 512,
        bottleneck: int = 128,
        student_temperature: float = 0.1,
        teacher_temperatures: Sequence[float] = (0.04, 0.07),
        token_momentum: float | None = None,
        class_momentum: float | None = None,
        centre_by_position: bool = False,
    ) -> None:
        super().__init__()
        channels, *size = teacher.views.feature_shape
        # a centre that is slower than what it centres can't hold back the prototype that wins: a
        # teacher of 0.95 gave all class tokens one and the same under a centre of 0.99
        fast = max(0.0, 1 - 2 * (1 - teacher.momentum))
        self.token_momentum = min(0.9, fast) if token_momentum is None else token_momentum
        self.class_momentum = min(0.99, fast) if class_momentum is None else class_momentum
        self.centre_by_position = centre_by_position
        self.refer(teacher=teacher)
        self.weight, self.warmup_epochs, self.strength = weight, warmup_epochs, strength
        self.decay = check_decay(decay)
        self.alpha, self.beta = alpha, beta
        self.student_temperature = student_temperature
        self.teacher_temperatures = tuple(teacher_temperatures)
        self.token_head = ProjectionHead(channels, prototypes, hidden, bottleneck)
        self.class_head = ProjectionHead(channels, class_prototypes, hidden, bottleneck)
        positions = math.prod(size) if centre_by_position else 0
        self.token_centre = Centre(prototypes, self.token_momentum, positions)
        self.class_centre = Centre(class_prototypes, self.class_momentum)
        self.class_memory = ClassMemory(channels, self.class_momentum)
        self.health = {"token": Health(prototypes), "class": Health(class_prototypes)}
        self.to(next(teacher.views.parameters()).device)
        teacher.follow("token_head", self.token_head)
        teacher.follow("class_head", self.class_head)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Add the loss after the segmentation loss; report health after each epoch."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def losses(self, step: MODStep, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute L_efm (Eq. 1) and L_cls (Eq. 2) and update the centres after their use.

        Args:
            step: views' features of student and teacher.
            temperature: τ_t.

        Returns:
            Two scalars in nats.
        """
        assert step.teacher is not None
        student, teacher = _tokens(step.student), _tokens(step.teacher)  # (2B, N, C)
        memory = self.class_memory
        with torch.no_grad():
            copies = self.teacher.copies
            token_targets = copies["token_head"](teacher)  # (2B, N, K)
            class_targets = copies["class_head"](memory(teacher.mean(1)))  # (2B, K_cls)
            p_token = teacher_probabilities(token_targets, self.token_centre.value, temperature)
            p_class = teacher_probabilities(class_targets, self.class_centre.value, temperature)
        q_token = self.token_head(student)
        # halves of the batch axis are μ and ν: a mean over 2B is the mean of both views' losses
        efm = token_loss(q_token, p_token, step.token_masks, self.student_temperature)
        if step.clean is None:
            q_class = self.class_head(memory(student.mean(1)))
            other_view = torch.cat(p_class.chunk(2)[::-1])  # ν's target for μ̂ and μ's for ν̂
        else:  # the segmentation's own view, and the step's one
            q_class = self.class_head(memory(_tokens(step.clean).mean(1)))
            other_view = p_class[: len(q_class)]
        cls = class_loss(q_class, other_view, self.student_temperature)
        self.token_centre.update(token_targets)
        self.class_centre.update(class_targets)
        memory.update(teacher.mean(1))
        masked = step.token_masks > 0
        tau = self.student_temperature
        self.health["token"].add(p_token[masked], q_token[masked] / tau, teacher)
        self.health["class"].add(other_view, q_class / tau)
        return efm, cls

    def _add_loss(self, engine: SupervisedTrainer) -> None:
        state = engine.state
        if state.mod is None:
            return
        done = (state.iteration - 1) / (state.max_epochs * state.epoch_length)
        temperature = teacher_temperature(done, self.teacher_temperatures)
        efm, cls = self.losses(state.mod, temperature)
        loss = self.alpha * efm + self.beta * cls  # Eq. 3
        share = loss_share(engine, self.warmup_epochs, self.decay)
        factor = self.weight * share * self.strength
        state.output["loss"] = state.output["loss"] + factor * loss
        state.output["loss_token"], state.output["loss_class"] = efm.detach(), cls.detach()

    def _report(self, engine: SupervisedTrainer) -> None:
        for name, centre in (("token", self.token_centre), ("class", self.class_centre)):
            health = self.health[name]
            figures = health.figures()
            figures["centre_norm"] = float(centre.value.norm())
            engine.state.metrics.update({f"{name}_{key}": v for key, v in figures.items()})
            collapsed, ceiling = health.collapsed(), health.ceiling()  # on every process
            logger.info(
                "%s teacher: marginal entropy %.2f of %.2f nats, information %.2f, KL %.2f",
                name,
                figures["marginal_entropy"],
                figures["max_entropy"],
                figures["information"],
                figures["divergence"],
            )
            warm = engine.state.epoch > self.warmup_epochs
            if collapsed and warm and not health.warned:
                health.warned = True
                warnings.warn(
                    f"MOD: the {name} teacher is collapsing: the marginal entropy of its outputs "
                    f"was {figures['marginal_entropy']:.2f} nats over epoch {engine.state.epoch}, "
                    f"under half of its ceiling {ceiling:.2f}. A falling loss_{name} is "
                    "then no success. Lower mod_weight, or use fewer prototypes.",
                    stacklevel=2,
                )
            elif name == "token" and warm and not health.warned and vague(figures):
                health.warned = True
                warnings.warn(
                    "MOD: the token teacher tells its tokens apart by no more than "
                    f"{figures['information']:.2f} of {figures['max_entropy']:.2f} nats over epoch "
                    f"{engine.state.epoch}: there is nothing to learn from it. Lower its "
                    "temperatures: --mod#tokenizer#teacher_temperatures '[0.04,0.04]'.",
                    stacklevel=2,
                )
            health.reset()


def _tokens(feature: Tensor) -> Tensor:
    """(B, C, d, h, w) -> (B, N, C), N in row-major order."""
    return feature.flatten(2).transpose(1, 2)
