"""Health figures: does the teacher still say something, does the Dense Predictor see anything?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor

from mod_components.mod.step import all_reduce_mean

__all__ = ["Health", "ReconstructionHealth", "vague"]

VAGUE = 0.02
"""Share of ln K under which what an assignment tells is as good as nothing."""


class Health:
    """Sums over an epoch from which collapse of a self-distilled teacher can be read.

    Steps that are not finite are left out: no training step follows from them.

    A falling loss alone does not show that the student learns: it falls too when the teacher
    gives every token the same answer. The marginal entropy (of the mean assignment) tells the two
    apart: it stays near ln K when prototypes are used evenly and falls to 0 in a collapse.

    Args:
        prototypes: K.
    """

    def __init__(self, prototypes: int) -> None:
        self.prototypes = prototypes
        self.warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the epoch's sums."""
        self._count = torch.zeros(())
        self._marginal = torch.zeros(self.prototypes)
        self._entropy = torch.zeros(())
        self._divergence = torch.zeros(())
        self._std = torch.zeros(())
        self._steps: Tensor | None = None

    @torch.no_grad()
    def add(self, teacher: Tensor, student_logits: Tensor, feature: Tensor | None = None) -> None:
        """Add one step.

        Args:
            teacher: assignments P (n, K).
            student_logits: scores already divided by τ_s, (n, K), paired with ``teacher``.
            feature: the teacher's features (..., C), whose spread is reported.
        """
        log_p = teacher.clamp(min=1e-12).log()
        log_q = student_logits.float().log_softmax(-1)
        entropy = -(teacher * log_p).sum()
        divergence = (teacher * (log_p - log_q)).sum()
        finite = (entropy + divergence).isfinite()

        def plus(total: Tensor, new: Tensor) -> Tensor:
            total = total.to(teacher.device)
            return torch.where(finite, total + new, total)

        self._count = plus(self._count, teacher.new_tensor(len(teacher)))
        self._marginal = plus(self._marginal, teacher.sum(0))
        self._entropy = plus(self._entropy, entropy)
        self._divergence = plus(self._divergence, divergence)
        if feature is not None:
            unit = F.normalize(feature.float().flatten(0, -2), dim=-1)
            self._std = plus(self._std, unit.std(0, correction=0).mean())
            steps = torch.zeros(()) if self._steps is None else self._steps
            self._steps = plus(steps, teacher.new_ones(()))

    def figures(self) -> dict[str, float]:
        """The epoch's figures over all processes.

        Returns:
            (NaN where nothing was added) ``entropy``: mean entropy of an assignment, nats;
            ``marginal_entropy``: entropy of the mean assignment, nats (ln K at best);
            ``information``: their difference, what an assignment says beyond the average (0: the
            same of all), nats; ``max_entropy``: ln K; ``divergence``: KL(P‖Q), nats;
            ``feature_std`` (if features were given): mean standard deviation of the L2-normalised
            features, 1/√C when isotropic and 0 when collapsed.
        """
        count = all_reduce_mean(self._count)
        result = {
            "entropy": float(all_reduce_mean(self._entropy) / count),
            "marginal_entropy": self._marginal_entropy(),
            "max_entropy": math.log(self.prototypes),
            "divergence": float(all_reduce_mean(self._divergence) / count),
        }
        result["information"] = result["marginal_entropy"] - result["entropy"]
        if self._steps is not None:
            steps = all_reduce_mean(self._steps)
            result["feature_std"] = float(all_reduce_mean(self._std) / steps)
        return result

    def ceiling(self) -> float:
        """The largest marginal entropy that this many sharp assignments could show, in nats.

        Every process must call it: the assignments of all are counted.
        """
        samples = float(all_reduce_mean(self._count) * idist.get_world_size())
        return math.log(min(self.prototypes, max(samples, 1.0)))

    def collapsed(self) -> bool:
        """Whether the epoch's marginal entropy is under half of what it could be.

        It is not where nothing was added.

        Every process must call it, and all get the same answer.
        """
        return self._marginal_entropy() < 0.5 * self.ceiling()

    def _marginal_entropy(self) -> float:
        count = all_reduce_mean(self._count)
        mean = all_reduce_mean(self._marginal) / count
        return float(-(mean * mean.clamp(min=1e-12).log()).sum())


def vague(figures: Mapping[str, float]) -> bool:
    """Whether a teacher gives all tokens the same answer, spread over many prototypes.

    Its marginal entropy is then high, as in a healthy one, and its loss lies at ln K.

    Args:
        figures: of :meth:`Health.figures`.
    """
    return figures["information"] < VAGUE * figures["max_entropy"]


class ReconstructionHealth:
    """Sums over an epoch that tell whether a Dense Predictor does better than a constant.

    Its loss alone does not: z-scored brains are 0 on average, so that a decoder which answers 0
    everywhere (dead units, a loss weight that crushes it) has a low loss too. The yardstick is the
    best that can be said without looking: each channel's mean over the brain that is visible.

    Every third voxel in each direction is looked at, steps that are not finite are left out.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the epoch's sums."""
        self._error = torch.zeros(2)

    @torch.no_grad()
    def add(self, reconstruction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add one step.

        Args:
            reconstruction: the Dense Predictor's output (B, C, D, H, W).
            target: the unmasked views (B, C, D, H, W), 0 in all channels outside the brain.
            mask: 1 where masked (B, 1, D, H, W).
        """
        recon, target, mask = (
            x[..., ::3, ::3, ::3].float() for x in (reconstruction, target, mask)
        )
        brain = (target != 0).any(dim=1, keepdim=True).float()
        visible, hidden = brain * (1 - mask), brain * mask
        space = (2, 3, 4)
        count = visible.sum(space, keepdim=True).clamp(min=1)
        constant = (target * visible).sum(space, keepdim=True) / count  # (B, C, 1, 1, 1)
        errors = [((guess - target).abs() * hidden).sum() for guess in (recon, constant)]
        new = torch.stack(errors)
        self._error = self._error.to(new) + torch.where(new.isfinite().all(), new, 0.0)

    def gain(self) -> float:
        """1 − the error inside the masked brain / that of the constant, over all processes.

        0: no better than the constant; 1: without an error; NaN: nothing was added.
        """
        error, constant = all_reduce_mean(self._error).tolist()
        return 1 - error / constant if constant else math.nan
