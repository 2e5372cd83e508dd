"""Options for speed leave weights, names and results of a network alone."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch import nn

from mod_components.networks import Tap, prepare_network
from mod_components.networks.side_pass import parts, side_pass
from tests.backbones import build_network, two_quick
from tests.toys import ToyNetwork

TAPS = {"swinunetr": "swinViT.layers3.0", "unetr": "vit", "segmamba": "encoder.outputs.3"}


def test_parts_lie_around_the_way_to_the_tap() -> None:
    network = build_network("swinunetr", (64, 64, 64))
    names = {module: name for name, module in network.named_modules()}
    found = [names[part] for part in parts(network, TAPS["swinunetr"])]
    assert {"swinViT.patch_embed", "swinViT.layers1.0", "swinViT.layers3.0.blocks.0"} <= {*found}
    assert {"swinViT", "swinViT.layers3", "swinViT.layers3.0"}.isdisjoint(found)
    # each parameter is in one part
    inside = [id(p) for part in parts(network, TAPS["swinunetr"]) for p in part.parameters()]
    assert sorted(inside) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize("name", two_quick())
def test_channels_last(name: str) -> None:
    network = build_network(name, (64, 64, 64)).eval()
    prepared = prepare_network(copy.deepcopy(network), "", channels_last=True)
    x = torch.randn(1, 4, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), network(x), rtol=1e-4, atol=1e-4)
    kernels = [p for p in prepared.parameters() if p.ndim == 5 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)


def compiled(network: nn.Module, tap: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Compiled by the tracer alone, which is what could go wrong; no code is generated."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    return prepare_network(network, tap, compile_parts=True)


def test_compiled_parts_keep_names_taps_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = ToyNetwork()
    network = compiled(copy.deepcopy(plain), "encoder", monkeypatch)
    assert network.stem._compiled_call_impl is not None
    assert network.encoder._compiled_call_impl is None
    assert network.encoder[0]._compiled_call_impl is not None
    x = torch.randn(2, 4, 16, 16, 16)
    assert list(network.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(network(MetaTensor(x)), plain(x))
    tap = Tap("encoder")
    torch.testing.assert_close(tap(network, x), tap(plain, x))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(x).abs().sum() == 0
    torch.testing.assert_close(network(x), plain(x))


def test_a_compiled_part_stays_compiled_from_step_to_step() -> None:
    """Each kind of pass (with gradients, beside the training, without) is compiled once.

    With attention and a convolution, which passes beside the training compute in their own ways.
    """
    compiled_at: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        compiled_at.append(len(steps))
        return graph

    torch._dynamo.reset()
    block = SwinTransformerBlock(12, 2, (4, 4, 4), (0, 0, 0))
    convolution = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.GroupNorm(2, 4))
    network = nn.ModuleList([block, convolution])
    for part in network:
        part.compile(backend=backend)
    x, y = torch.randn(1, 4, 4, 4, 12), torch.randn(1, 4, 6, 6, 6)

    def once() -> torch.Tensor:
        return block(x, None).sum() + convolution(y).sum()

    steps: list[int] = []
    while len(steps) < 4:
        once().backward()
        with side_pass(network):
            once().backward()
            with torch.no_grad():
                once()
        steps.append(len(compiled_at))
    assert 0 < steps[0] == steps[-1], compiled_at


def test_a_part_that_is_an_attention_layer_is_given_back() -> None:
    network = build_network("swinunetr", (64, 64, 64))
    tap = Tap("swinViT.layers1.0.blocks.0.norm1", use_checkpoint=True)
    tap(network, torch.randn(1, 4, 64, 64, 64)).sum().backward()
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", TAPS)
def test_compiled_backbones(name: str) -> None:
    """With the real compiler: feature, logits and gradients of the plain network."""
    torch.manual_seed(0)
    plain = build_network(name, (64, 64, 64))
    network = prepare_network(copy.deepcopy(plain), TAPS[name], compile_parts=True)
    x = torch.randn(1, 4, 64, 64, 64)
    tap = Tap(TAPS[name])
    for one in (plain, network):
        (one(x).square().mean() + tap(one, x).square().mean()).backward()
    expected = dict(plain.named_parameters())
    for key, parameter in network.named_parameters():
        if (gradient := expected[key].grad) is not None:
            assert (parameter.grad - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, key
