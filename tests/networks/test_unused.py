"""Parameters without a gradient are found without computing anything."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from mod_components.networks import freeze_unused, unused_parameters
from tests.backbones import BACKBONES, build_network


def small_unetr() -> UNETR:
    return UNETR(4, 3, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2)


def test_unetr_has_24_and_they_are_those_without_a_gradient() -> None:
    network = small_unetr()
    names = unused_parameters(network, (32, 32, 32))
    network(torch.randn(1, 4, 32, 32, 32)).sum().backward()
    assert names == [name for name, p in network.named_parameters() if p.grad is None]
    assert len(names) == 24
    assert all("norm_cross_attn" in name for name in names)


def test_swin_unetr_has_none() -> None:
    network = SwinUNETR(in_channels=4, out_channels=3, feature_size=12)
    assert unused_parameters(network, (64, 64, 64)) == []


def test_freezing_changes_no_weight_and_leaves_the_rest_trainable() -> None:
    network = small_unetr()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert freeze_unused(network, (32, 32, 32)) is network
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == unused_parameters(network, (32, 32, 32))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_that_are_switched_off_do_not_matter() -> None:
    with torch.no_grad():
        assert len(unused_parameters(small_unetr(), (32, 32, 32))) == 24


class Peculiar(nn.Module):
    """Something that is no plain segmentation network."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.used, self.unused = nn.Conv3d(4, 1, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> object:
        if self.kind == "reads values":  # which the meta device does not have
            return self.used(x) * float(x.mean())
        return [self.used(x)] if self.kind == "list" else x


@pytest.mark.parametrize("kind", ["reads values", "list", "no parameters"])
def test_a_network_that_cannot_be_looked_through_is_left_alone(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = freeze_unused(Peculiar(kind), (8, 8, 8))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert "Peculiar does not use were not looked for, so none is frozen" in caplog.text
    network = freeze_unused(small_unetr(), (32, 32, 32), channels=1)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert "UNETR does not use" in caplog.text


@pytest.mark.parametrize("channels", [1, 2])
def test_channels(channels: int) -> None:
    assert unused_parameters(nn.Conv3d(channels, 2, 3), (8, 8, 8), channels=channels) == []


class Tied(nn.Module):
    """Two names of one weight, a running statistic, and a cache that a forward pass leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1)
        self.second.weight = self.first.weight
        self.norm, self.spare = nn.BatchNorm3d(4), nn.Linear(2, 2)
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.norm(self.second(self.first(x)))


def test_the_search_leaves_the_network_as_it_was() -> None:
    network = Tied()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    assert unused_parameters(network, (4, 4, 4)) == ["spare.weight", "spare.bias"]
    assert network.seen is None
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.device.type == "cpu" for value in network.state_dict().values())
    assert network.second.weight is network.first.weight
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_as_a_whole_copy_would_find(backbone: str) -> None:
    network = build_network(backbone, (64, 64, 64))
    whole = copy.deepcopy(network).to("meta")
    whole(torch.zeros(1, 4, 64, 64, 64, device="meta")).sum().backward()
    expected = [name for name, p in whole.named_parameters() if p.grad is None]
    assert unused_parameters(network, (64, 64, 64)) == expected
