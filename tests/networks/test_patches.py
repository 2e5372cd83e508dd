"""Patches as matrix products beside the convolutions that they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mod_components.networks.patches import patches_as_products


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(16, 24, 8), (17, 24, 15)])
def test_a_product_is_the_convolution(bias: bool, size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 5, (8, 12, 8), stride=(8, 12, 8), bias=bias)
    x = torch.randn(2, 2, *size)
    expected = results(layer, x)
    with patches_as_products(layer):
        assert "forward" in vars(layer)
        torch.testing.assert_close(results(layer, x), expected, rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 8, "stride": 4},
        {"kernel_size": 8, "stride": 8, "padding": 1},
        {"kernel_size": 8, "stride": 8, "dilation": 2},
        {"kernel_size": 8, "stride": 8, "groups": 2},
    ],
)
def test_others_stay_convolutions(settings: dict[str, int]) -> None:
    layer = nn.Conv3d(2, 4, **settings)
    with patches_as_products(nn.Sequential(layer)):
        assert "forward" not in vars(layer)


def test_the_layer_is_as_before_after_an_error() -> None:
    layer = nn.Conv3d(2, 4, 8, stride=8)
    with (
        pytest.raises(RuntimeError, match="stop"),
        patches_as_products(layer),
        patches_as_products(layer),
    ):
        raise RuntimeError("stop")
    assert "forward" not in vars(layer)
