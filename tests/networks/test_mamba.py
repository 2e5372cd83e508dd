"""The tri-orientated Mamba layer against loops over tokens, written from the equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mod_components.networks import mamba
from mod_components.networks.mamba import SelectiveStateSpace, TriOrientatedMamba

Array = np.ndarray[Any, np.dtype[np.float64]]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def naive_direction(w: dict[str, Array], x: Array) -> Array:
    """One direction on one sequence (L, E), token by token."""
    length, channels = x.shape
    kernel = w["conv.weight"][:, 0]  # (E, K)
    taps, state = kernel.shape[1], w["A_log"].shape[1]
    rank = w["dt_proj.weight"].shape[1]
    u = np.zeros_like(x)
    for t in range(length):
        total = w["conv.bias"].copy()
        for lag in range(min(taps, t + 1)):
            total += kernel[:, taps - 1 - lag] * x[t - lag]
        u[t] = silu(total)
    y = np.zeros_like(x)
    h = np.zeros((channels, state))
    for t in range(length):
        row = w["x_proj.weight"] @ u[t]
        b, c = row[rank : rank + state], row[rank + state :]
        delta = np.log1p(np.exp(w["dt_proj.weight"] @ row[:rank] + w["dt_proj.bias"]))
        for e in range(channels):
            for n in range(state):
                decay = np.exp(-delta[e] * np.exp(w["A_log"][e, n]))
                h[e, n] = decay * h[e, n] + delta[e] * b[n] * u[t, e]
        y[t] = h @ c + w["D"] * u[t]
    return y


def orders(grid: tuple[int, int, int]) -> dict[str, list[int]]:
    """Row-major indices of the voxels in the order in which each direction reads them."""
    d, h, w = grid
    ahead = list(range(d * h * w))
    across = [(k * h + i) * w + j for i in range(h) for j in range(w) for k in range(d)]
    return {"ahead": ahead, "back": ahead[::-1], "across": across}


def naive_layer(layer: TriOrientatedMamba, tokens: Array, grid: tuple[int, int, int]) -> Array:
    """The whole layer on one image's tokens (L, C): each direction gated in its own order."""
    weights = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    projected = tokens @ weights["in_proj.weight"].T
    x, z = np.split(projected, 2, axis=1)
    total = np.zeros_like(x)
    for direction, order in orders(grid).items():
        start = f"{direction}."
        own = {name[len(start) :]: v for name, v in weights.items() if name.startswith(start)}
        y = naive_direction(own, x[order]) * silu(z[order])
        for place, index in enumerate(order):
            total[index] += y[place]
    return total @ weights["out_proj.weight"].T


def random_layer(channels: int, state: int) -> TriOrientatedMamba:
    """No two parameters alike, so that mixed-up directions show."""
    torch.manual_seed(0)
    layer = TriOrientatedMamba(channels, state).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("grid", [(2, 3, 4), (3, 1, 2), (1, 2, 3), (5, 2, 1)])
@torch.no_grad()
def test_layer_is_the_naive_one(grid: tuple[int, int, int]) -> None:
    layer = random_layer(channels=18, state=3)  # rank 2
    tokens = torch.randn(2, grid[0] * grid[1] * grid[2], 18, dtype=torch.float64)
    mixed = layer(tokens, grid)
    assert mixed.shape == (2, 18, tokens.shape[1])
    for image in range(2):
        expected = naive_layer(layer, tokens[image].numpy(), grid)
        np.testing.assert_allclose(mixed[image].numpy().T, expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_those_of_differences() -> None:
    layer, grid = random_layer(channels=3, state=2), (2, 2, 3)
    tokens = torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 3, 12, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad(
        (layer(tokens, grid) * weight).sum(), [tokens, *parameters.values()]
    )
    for tensor, gradient in zip([tokens, *parameters.values()], gradients, strict=True):
        flat = tensor.detach().view(-1)
        for index in {0, flat.numel() // 2, flat.numel() - 1}:
            ends = []
            for step in (1e-6, -1e-6):
                flat[index] += step
                value = naive_layer(layer, tokens[0].detach().numpy(), grid)
                ends.append(float((value * weight[0].numpy().T).sum()))
                flat[index] -= step
            difference = (ends[0] - ends[1]) / 2e-6
            assert gradient.reshape(-1)[index].item() == pytest.approx(
                difference, rel=1e-5, abs=1e-7
            )


def test_initial_values_are_mambas() -> None:
    torch.manual_seed(0)
    space = SelectiveStateSpace(channels=4000, state=5, rank=4)
    np.testing.assert_allclose(
        space.A_log.detach(), np.tile(np.log([1, 2, 3, 4, 5]), (4000, 1)), rtol=1e-6
    )
    assert torch.equal(space.D, torch.ones(4000))
    step = np.log1p(np.exp(space.dt_proj.bias.detach().double().numpy()))
    assert step.min() >= 1e-3 * (1 - 1e-4)
    assert step.max() <= 1e-1 * (1 + 1e-4)
    quartiles = np.quantile(np.log10(step), [0.25, 0.5, 0.75])  # uniform on [-3, -1]
    np.testing.assert_allclose(quartiles, [-2.5, -2.0, -1.5], atol=0.06)
    weight = space.dt_proj.weight.detach()
    assert 0.49 < weight.abs().max() <= 0.5  # rank^-0.5
    assert float(weight.std()) == pytest.approx(1 / np.sqrt(12), rel=0.03)


def test_shapes_of_the_parameters() -> None:
    shapes = {n: tuple(p.shape) for n, p in TriOrientatedMamba(48, 16).named_parameters()}
    one = {
        "A_log": (96, 16),
        "D": (96,),
        "conv.weight": (96, 1, 4),
        "conv.bias": (96,),
        "x_proj.weight": (3 + 32, 96),
        "dt_proj.weight": (96, 3),
        "dt_proj.bias": (96,),
    }
    expected = {f"{way}.{n}": s for way in ("ahead", "back", "across") for n, s in one.items()}
    assert shapes == expected | {"in_proj.weight": (192, 48), "out_proj.weight": (48, 96)}


def test_the_scan_gets_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    def scan(u: Tensor, *others: Tensor) -> Tensor:
        seen.extend((x.dtype, torch.is_autocast_enabled("cpu")) for x in (u, *others))
        return real(u, *others)

    real = mamba.selective_scan
    monkeypatch.setattr(mamba, "selective_scan", scan)
    torch.manual_seed(0)
    layer, tokens = TriOrientatedMamba(8, 4), torch.randn(1, 24, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(tokens, (2, 3, 4))
    assert mixed.dtype == torch.bfloat16
    assert len(seen) == 18
    assert set(seen) == {(torch.float32, False)}
    torch.testing.assert_close(mixed.float(), layer(tokens, (2, 3, 4)), rtol=0.05, atol=0.02)
    mixed.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
