"""The tri-orientated Mamba layer (ToM): a selective state space read along three orders of voxels.

Sources: the selective state space is Mamba's (Gu and Dao 2023, https://arxiv.org/abs/2312.00752),
the three orders are SegMamba's (Xing et al. 2024, https://arxiv.org/abs/2401.13560).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mod_components.networks.selective_scan import selective_scan

__all__ = ["SelectiveStateSpace", "TriOrientatedMamba"]

EXPANSION = 2  # E = 2C
KERNEL = 4  # taps of the causal convolution
STEP_RANGE = (1e-3, 1e-1)  # initial Δ of the state space, log-uniform


class SelectiveStateSpace(nn.Module):
    """One direction of Mamba, from the causal convolution to the state space's output.

    Args:
        channels: E, the width of the sequence.
        state: N, the size of the state of each channel.
        rank: width of the bottleneck through which Δ is computed.
    """

    def __init__(self, channels: int, state: int, rank: int) -> None:
        super().__init__()
        self.widths = (rank, state, state)
        self.conv = nn.Conv1d(
            channels, channels, KERNEL, groups=channels, padding=KERNEL - 1, bias=True
        )
        self.x_proj = nn.Linear(channels, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        # named as in every Mamba, so that optimisers recognise what is not to be decayed
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self._initialise_steps()

    @torch.no_grad()
    def _initialise_steps(self) -> None:
        bound = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = (math.log(edge) for edge in STEP_RANGE)
        step = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
        # softplus(bias) = step; expm1 keeps the digits that exp(step) - 1 would lose
        self.dt_proj.bias.copy_(step.expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        """Filter a sequence; no output depends on a later input.

        Args:
            x: sequence (B, E, L).

        Returns:
            The state space's output (B, E, L), in float32 at least.
        """
        # the convolution is padded on both ends: what it computes past the end is not causal
        x = F.silu(self.conv(x)[..., : x.shape[-1]])
        # the weights are used channels first, which is the scan's layout: no transposed copies
        step, into, out = (self.x_proj.weight @ x).split(self.widths, dim=1)  # (B, R | N | N, L)
        step = _wide(self.dt_proj.weight @ step)  # (B, E, L)
        # exp(Δ A) is applied once per token: errors of half precision would pile up in the state,
        # so that the scan runs outside autocast
        with _no_autocast(x.device.type):
            delta = F.softplus(step + _wide(self.dt_proj.bias)[:, None])
            decay = -torch.exp(_wide(self.A_log))  # (E, N)
            return selective_scan(
                _wide(x), delta, decay, _wide(into), _wide(out), _wide(self.D)
            )  # (B, E, L)


class TriOrientatedMamba(nn.Module):
    """Mamba over the voxels of a grid in three orders: row-major, its reverse, slice axis fastest.

    The projections into and out of the sequence space are shared by the directions; everything
    between has a copy for each.

    Args:
        channels: C, the width of the tokens.
        state: N, the size of the state of each channel.
    """

    def __init__(self, channels: int, state: int = 16) -> None:
        super().__init__()
        inner, rank = EXPANSION * channels, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.ahead = SelectiveStateSpace(inner, state, rank)
        self.back = SelectiveStateSpace(inner, state, rank)
        self.across = SelectiveStateSpace(inner, state, rank)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Mix the tokens of a grid.

        Args:
            tokens: (B, L, C), L = D·H·W in row-major order.
            grid: (D, H, W); any size.

        Returns:
            The mixed channels (B, C, L), channels first, tokens in the same order.
        """
        slices = grid[0]
        x, gate = (self.in_proj.weight @ tokens.transpose(1, 2)).chunk(2, dim=1)  # 2 × (B, E, L)
        y = self.ahead(x)
        y = y + self.back(x.flip(-1)).flip(-1)
        # (B, E, D·H·W) -> (B, E, H·W·D): the next token is the same place in the next slice
        between = self.across(x.unflatten(-1, (slices, -1)).transpose(-1, -2).flatten(-2))
        y = y + between.unflatten(-1, (-1, slices)).transpose(-1, -2).flatten(-2)
        # every direction is gated by the same values, so that gating the sum is the same, for less
        return self.out_proj.weight @ (y.to(gate.dtype) * F.silu(gate))  # (B, C, L)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device):  # the meta device, on which shapes are probed
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _wide(x: Tensor) -> Tensor:
    """Return the values in float32, or in float64 where they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
