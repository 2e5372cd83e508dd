"""Faster ways to convolve beside PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mod_components.networks import convolutions
from mod_components.networks.convolutions import fast_convolutions


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": (8, 12, 8), "stride": (8, 12, 8)},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 8, "stride": 8, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_the_results_are_pytorchs(bias: bool, images: int, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 4, bias=bias, **settings)
    x = torch.randn(images, 2, 17, 24, 15)
    expected = results(layer, x)
    with fast_convolutions(layer):
        torch.testing.assert_close(results(layer, x), expected, rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(layer)


def test_large_patches_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    usual = convolutions._as_product
    monkeypatch.setattr(
        convolutions, "_as_product", lambda layer, x: (calls.append(1), usual(layer, x))[1]
    )
    model = nn.Sequential(nn.Conv3d(1, 2, 8, stride=8), nn.Conv3d(2, 2, 2, stride=2))
    with fast_convolutions(model):
        model(torch.randn(2, 1, 16, 16, 16))
    assert len(calls) == 1


def test_half_precision_is_left_to_pytorch() -> None:
    layer = nn.Conv3d(2, 4, 3)
    with fast_convolutions(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 2, 8, 8, 8)).dtype == torch.bfloat16


def test_the_layer_is_as_before_after_an_error() -> None:
    layer = nn.Conv3d(2, 4, 8, stride=8)
    with (
        pytest.raises(RuntimeError, match="stop"),
        fast_convolutions(layer),
        fast_convolutions(layer),
    ):
        raise RuntimeError("stop")
    assert "forward" not in vars(layer)
