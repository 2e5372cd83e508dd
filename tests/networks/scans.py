"""A plain loop over the positions, differentiated by autograd, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D")


def loop(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    h = torch.zeros(u.shape[0], u.shape[1], a.shape[1], dtype=u.dtype)
    y = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * a) * h + step * u[:, :, t, None] * b[:, None, :, t]
        y.append((h * c[:, None, :, t]).sum(2) + d * u[:, :, t])
    return torch.stack(y, 2)


def inputs(
    batch: int, channels: int, states: int, length: int, largest: float = 0.1, seed: int = 0
) -> list[Tensor]:
    """Float64 inputs as in a trained Mamba: A = -1 ... -N, delta log-uniform from 1e-3 on."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    share = torch.rand(batch, channels, length, generator=generator, dtype=torch.float64)
    delta = 1e-3 * (largest / 1e-3) ** share
    a = -torch.arange(1.0, states + 1, dtype=torch.float64) * (1 + 0.1 * normal(channels, 1)).abs()
    return [
        normal(batch, channels, length),
        delta,
        a,
        normal(batch, states, length),
        normal(batch, states, length),
        normal(channels),
    ]


def leaves(tensors: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.detach().to(dtype, copy=True).requires_grad_() for x in tensors]


def with_gradients(function: Any, tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    y = function(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy.to(y.dtype))]


def assert_same(
    actual: list[Tensor], expected: list[Tensor], tolerance: float, names: Any = ("y", *NAMES)
) -> None:
    for name, x, reference in zip(names, actual, expected, strict=True):
        assert x.shape == reference.shape, name
        error, scale = (x.double() - reference).abs().max(), reference.abs().max()
        assert error <= tolerance * scale, f"{name}: {error:.1e} of {scale:.1e}"
