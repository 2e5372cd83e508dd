"""Projection heads of the Online Tokenizer, and the moving statistics that keep them in use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mod_components.mod.step import all_reduce_mean

__all__ = ["Centre", "ClassMemory", "ProjectionHead"]


class ProjectionHead(nn.Module):
    """Head h: layer norm, MLP, bottleneck, L2 norm, then a linear map onto K unit prototypes.

    The last map's rows are normalised (a weight-normalised linear layer of gain 1), so an output
    is the cosine between a feature and a prototype.

    Args:
        channels: C of the encoder feature.
        prototypes: K.
        hidden: width of the MLP.
        bottleneck: width after it.
    """

    def __init__(
        self, channels: int, prototypes: int, hidden: int = 512, bottleneck: int = 128
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, feature: Tensor) -> Tensor:
        """Map features (..., C) to prototype scores (..., K) in [-1, 1]."""
        code = F.normalize(self.mlp(feature).float(), dim=-1)
        # bfloat16 knows cosines to about 0.002 only, 0.05 nats at a temperature of 0.04
        with torch.autocast(feature.device.type, enabled=False):
            return F.linear(code, F.normalize(self.prototypes, dim=-1))


class Centre(nn.Module):
    """Moving mean of the teacher's outputs, over all processes, in float32 (method, section 4).

    The first updates take the plain mean of what was seen, until that mean is as slow as the
    moving one: a centre that starts at 0 with a momentum of 0.99 would be wrong for 100 steps.

    Args:
        prototypes: K.
        momentum: share of the old centre that an update keeps.
        positions: N, for a centre of each position of a crop; 0 for one of all.
    """

    value: Tensor
    updates: Tensor

    def __init__(self, prototypes: int, momentum: float, positions: int = 0) -> None:
        super().__init__()
        self.momentum = momentum
        shape = (positions, prototypes) if positions else (prototypes,)
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move towards the mean of a batch of outputs, after they have been used.

        Args:
            logits: (..., K), or (B, N, K) where each position has a centre of its own.
        """
        batch = logits.float() if self.value.ndim > 1 else logits.float().flatten(0, -2)
        mean = all_reduce_mean(batch.mean(0))
        # an overflow in half precision costs one step, not the centre of the rest of the training
        mean = torch.where(mean.isfinite(), mean, self.value)
        self.updates += 1
        self.value.lerp_(mean, (1 / self.updates).clamp(min=1 - self.momentum))


class ClassMemory(nn.Module):
    """Moving mean and spread of past class tokens, by which new ones are standardised.

    A class token is the average of a whole crop, so that those of different crops are nearly the
    same vector: next to what they share, what sets them apart is too small to reach the prototypes,
    and with a few samples a step no centre brings it out. (Left as they are, the class loss stays
    at ln K.) Standardised by past steps, the difference is what the head sees.

    Args:
        channels: C of the encoder feature.
        momentum: share of the old statistics that an update keeps, once they are as slow as that.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, channels: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardise class tokens (..., C); the statistics are constants for the gradient."""
        return (tokens.float() - self.mean) / (self.variance + 1e-5).sqrt()

    @torch.no_grad()
    def update(self, tokens: Tensor) -> None:
        """Add the teacher's class tokens of a step (B, C), after they have been used."""
        tokens = tokens.float().flatten(0, -2)
        mean = all_reduce_mean(tokens.mean(0))
        variance = all_reduce_mean(((tokens - mean) ** 2).mean(0))
        if not (mean.isfinite().all() and variance.isfinite().all()):
            return
        self.updates += 1
        # the start (mean 0, variance 1) counts as a step of its own: the spread of a first batch,
        # often two views of one crop, says nothing of the spread between crops
        weight = (1 / (self.updates + 1)).clamp(min=1 - self.momentum)
        moved = mean - self.mean
        # of the mixture of what was seen and what is new
        self.variance.lerp_(variance, weight).add_(weight * (1 - weight) * moved**2)
        self.mean.lerp_(mean, weight)
