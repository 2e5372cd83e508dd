"""Health figures of the teacher's assignments: is it still saying something?"""

from __future__ import annotations

import math

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor

from mod_components.mod.step import all_reduce_mean

__all__ = ["Health"]


class Health:
    """Sums over an epoch from which collapse of a self-distilled teacher can be read.

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
        self._steps = 0

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
        entropy = -(teacher * log_p).sum(-1)
        self._count = self._count.to(teacher.device) + len(teacher)
        self._marginal = self._marginal.to(teacher.device) + teacher.sum(0)
        self._entropy = self._entropy.to(teacher.device) + entropy.sum()
        divergence = (teacher * (log_p - log_q)).sum()
        self._divergence = self._divergence.to(teacher.device) + divergence
        if feature is not None:
            unit = F.normalize(feature.float().flatten(0, -2), dim=-1)
            self._std = self._std.to(teacher.device) + unit.std(0, correction=0).mean()
            self._steps += 1

    def figures(self) -> dict[str, float]:
        """The epoch's figures over all processes.

        Returns:
            ``entropy``: mean entropy of an assignment, nats; ``marginal_entropy``: entropy of the
            mean assignment, nats (ln K at best); ``information``: their difference, what an
            assignment says beyond the average (0: the same of all), nats; ``max_entropy``: ln K;
            ``divergence``: KL(P‖Q), nats; ``feature_std`` (if features were given): mean standard
            deviation of the L2-normalised features, 1/√C when isotropic and 0 when collapsed.
        """
        count = all_reduce_mean(self._count).clamp(min=1)
        result = {
            "entropy": float(all_reduce_mean(self._entropy) / count),
            "marginal_entropy": self._marginal_entropy(),
            "max_entropy": math.log(self.prototypes),
            "divergence": float(all_reduce_mean(self._divergence) / count),
        }
        result["information"] = result["marginal_entropy"] - result["entropy"]
        if self._steps:
            result["feature_std"] = float(all_reduce_mean(self._std) / self._steps)
        return result

    def ceiling(self) -> float:
        """The largest marginal entropy that this many sharp assignments could show, in nats.

        Every process must call it: the assignments of all are counted.
        """
        samples = float(all_reduce_mean(self._count) * idist.get_world_size())
        return math.log(min(self.prototypes, max(samples, 1.0)))

    def collapsed(self) -> bool:
        """Whether the epoch's marginal entropy is under half of what it could be.

        Every process must call it, and all get the same answer.
        """
        return self._marginal_entropy() < 0.5 * self.ceiling()

    def _marginal_entropy(self) -> float:
        count = all_reduce_mean(self._count).clamp(min=1)
        mean = all_reduce_mean(self._marginal) / count
        return float(-(mean * mean.clamp(min=1e-12).log()).sum())
