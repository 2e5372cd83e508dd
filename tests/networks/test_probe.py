from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mod_components.errors import SettingsError
from mod_components.networks import PointProbe, Tap, encoder_modules, freeze
from tests.backbones import build_network

SIZE = (64, 64, 64)
TAP = "swinViT.layers3.0"


@pytest.fixture(scope="module")
def swin() -> nn.Module:
    torch.manual_seed(0)
    return build_network("swinunetr", SIZE)


def test_the_encoder_is_what_the_feature_depends_on(swin: nn.Module) -> None:
    """Every parameter in these modules changes the feature, and none outside does."""
    names = encoder_modules(swin, TAP, SIZE)
    owned = {key for key, _ in swin.named_parameters() if key.rpartition(".")[0] in names}
    x = torch.randn(1, 4, *SIZE)
    network = copy.deepcopy(swin).requires_grad_(True)
    Tap(TAP, layer_norm=True)(network, x).square().mean().backward()
    reached = {key for key, value in network.named_parameters() if value.grad is not None}
    assert owned == reached
    assert 0 < len(owned) < len(list(swin.parameters()))


def test_an_encoder_that_is_not_there(swin: nn.Module) -> None:
    with pytest.raises(SettingsError, match="has no module 'layers9'"):
        encoder_modules(swin, "layers9", SIZE)


def test_frozen_modules_stay_in_eval_mode_and_others_do_not() -> None:
    network = nn.Sequential(nn.BatchNorm3d(4), nn.Sequential(nn.Conv3d(4, 4, 1), nn.Dropout()))
    freeze([network[0]])
    network.train()
    assert not network[0].training
    assert network[1].training
    assert network[1][1].training
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    before = copy.deepcopy(network[0].state_dict())
    network(torch.randn(2, 4, 3, 3, 3))
    assert all(torch.equal(value, before[key]) for key, value in network[0].state_dict().items())


def test_a_copy_of_a_frozen_module_is_frozen_by_itself() -> None:
    network = nn.Sequential(nn.BatchNorm3d(4))
    freeze(network.modules())
    twin = copy.deepcopy(network)
    network[0].training = True
    twin.train()
    assert not twin[0].training


def test_a_point_probe_is_a_linear_function_of_the_feature(swin: nn.Module) -> None:
    probe = PointProbe(copy.deepcopy(swin), TAP, SIZE, layer_norm=True).train()
    x = torch.randn(2, 4, *SIZE)
    with torch.no_grad():
        feature = Tap(TAP, layer_norm=True)(swin.eval(), x)  # (2, C, 4, 4, 4)
        weight, bias = probe.head.weight[:, :, 0, 0, 0], probe.head.bias
        tokens = torch.einsum("oc,bcdhw->bodhw", weight, feature) + bias[:, None, None, None]
        expected = F.interpolate(tokens, SIZE, mode="trilinear", align_corners=False)
    logits = probe(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    logits.square().mean().backward()
    trained = {key for key, value in probe.named_parameters() if value.grad is not None}
    assert trained == {"head.weight", "head.bias"}
