"""The tap against the network's own hidden states; what it must leave as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR, ViT
from torch import Tensor, nn

from mod_components.mod.teacher import _pruned_copy
from mod_components.networks import Tap, plain_module
from mod_components.networks.tap import as_feature_map


class Stages(nn.Module):
    """Two stages in a ModuleList, an attention layer, a decoder that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv3d(1, 4, 2, stride=2), nn.BatchNorm3d(4)])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Conv3d(4, 4, 1)
        self.decoder = nn.ConvTranspose3d(4, 1, 2, stride=2)
        self.unused = nn.Linear(2, 2)
        self.decoded = 0
        self.decoder.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.decoded += 1

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens, _ = self.attention(tokens, tokens, tokens)
        x = self.head(tokens.transpose(1, 2).reshape(x.shape))
        return self.decoder(x)


class Compiled(nn.Module):
    """Looks like what ``torch.compile`` returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@pytest.fixture(scope="module")
def swin() -> SwinUNETR:
    torch.manual_seed(1)
    return SwinUNETR(in_channels=4, out_channels=3, feature_size=12).eval()


@torch.no_grad()
def test_swin_feature_is_the_state_that_its_decoder_gets(swin: SwinUNETR) -> None:
    x = torch.randn(1, 4, 32, 32, 32)
    hidden = swin.swinViT(x, swin.normalize)
    feature = Tap("swinViT.layers3.0", layer_norm=True)(swin, x)
    assert feature.shape == (1, 96, 2, 2, 2)
    torch.testing.assert_close(feature, hidden[3])
    raw = Tap("swinViT.layers3.0")(swin, x)
    assert (raw - hidden[3]).abs().max() > 0.1  # the layer norm is not nothing


@torch.no_grad()
def test_swin_pruned_copy_has_no_decoder_and_the_same_feature(swin: SwinUNETR) -> None:
    tap, x = Tap("swinViT.layers3.0", layer_norm=True), torch.randn(1, 4, 32, 32, 32)
    shape, needed = tap.probe(swin, torch.zeros_like(x))
    assert shape == (96, 2, 2, 2)
    pruned = _pruned_copy(swin, needed)
    torch.testing.assert_close(tap(pruned, x), tap(swin, x), rtol=0, atol=0)
    names = {name.split(".")[0] for name, _ in pruned.named_parameters()}
    assert names == {"swinViT"}
    assert not any("layers4" in name for name, _ in pruned.named_parameters())
    assert {p.data_ptr() for p in pruned.parameters()}.isdisjoint(
        p.data_ptr() for p in swin.parameters()
    )


@torch.no_grad()
def test_tokens_of_vit_and_unetr_are_reshaped_in_row_major_order() -> None:
    sizes = {"img_size": (32, 16, 48), "hidden_size": 12, "mlp_dim": 16, "num_heads": 2}
    vit = ViT(in_channels=4, patch_size=(16,) * 3, num_layers=1, **sizes).eval()
    holder = nn.Sequential()
    holder.add_module("vit", vit)
    x = torch.randn(2, 4, 32, 16, 48)
    tokens = vit(x)[0]  # (2, 6, 12): the ViT returns a tuple
    feature = Tap("vit")(holder, x)
    assert feature.shape == (2, 12, 2, 1, 3)
    for index in range(6):
        place = (index // 3, 0, index % 3)
        torch.testing.assert_close(feature[(..., *place)], tokens[:, index])

    unetr = UNETR(in_channels=4, out_channels=3, feature_size=4, **sizes).eval()
    feature = Tap("vit")(unetr, x)
    torch.testing.assert_close(feature.flatten(2).transpose(1, 2), unetr.vit(x)[0])
    # the same place in space: a bump in one patch moves that token most
    bump = x.clone()
    bump[:, :, 16:32, :, 32:48] += 50
    moved = (Tap("vit.patch_embedding")(unetr, bump) - Tap("vit.patch_embedding")(unetr, x)).abs()
    assert moved.sum(1)[0].flatten().nonzero().flatten().tolist() == [5]


def test_the_pass_stops_at_the_tap_and_leaves_no_hook() -> None:
    network = Stages()
    before = hooks_of(network)
    feature = Tap("head")(network, torch.randn(2, 1, 4, 4, 4))
    assert feature.shape == (2, 4, 2, 2, 2)
    assert network.decoded == 0
    assert hooks_of(network) == before
    network(torch.randn(2, 1, 4, 4, 4))
    assert network.decoded == 1


def test_the_hook_goes_after_an_error_too() -> None:
    network = Stages()
    before = hooks_of(network)
    with pytest.raises(RuntimeError, match="expected input"):
        Tap("head")(network, torch.randn(2, 3, 4, 4, 4))
    assert hooks_of(network) == before
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm3d))
    with pytest.raises(RuntimeError, match="expected input"):
        Tap("head").probe(network, torch.randn(2, 3, 4, 4, 4))
    assert hooks_of(network) == before
    assert network.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stages", r"ModuleList.*'stages\.0'"),
        ("encoder", r"Stages has no module 'encoder'.*'stages\.0'"),
        ("stages.7", "has no module"),
        ("head.weight", "has no module"),
    ],
)
def test_wrong_names_are_told(name: str, message: str) -> None:
    network = Stages()
    before = hooks_of(network)
    with pytest.raises(ValueError, match=message):
        Tap(name)(network, torch.randn(2, 1, 4, 4, 4))
    assert hooks_of(network) == before


def test_a_module_that_is_never_called_is_told() -> None:
    with pytest.raises(RuntimeError, match="never called 'unused'"):
        Tap("unused")(Stages(), torch.randn(2, 1, 4, 4, 4))


def test_gradients_are_those_of_the_network_itself() -> None:
    network, x = Stages(), torch.randn(2, 1, 4, 4, 4)
    Tap("head")(network, x).square().sum().backward()
    tapped = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    y = network.stages[1](network.stages[0](x))
    tokens = y.flatten(2).transpose(1, 2)
    tokens = network.attention(tokens, tokens, tokens)[0]
    network.head(tokens.transpose(1, 2).reshape(y.shape)).square().sum().backward()
    expected = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert tapped.keys() == expected.keys()
    assert "decoder.weight" not in tapped
    for name, gradient in expected.items():
        torch.testing.assert_close(tapped[name], gradient, msg=name)


def test_batch_norm_uses_the_batch_but_keeps_its_running_statistics() -> None:
    network = Stages().train()
    network(torch.randn(2, 1, 4, 4, 4))  # running statistics that are not the initial ones
    norm = network.stages[1]
    before = copy.deepcopy(norm.state_dict())
    x = 3 + 2 * torch.randn(2, 1, 4, 4, 4)
    feature = Tap("stages.1")(network, x)
    torch.testing.assert_close(feature.mean((0, 2, 3, 4)), torch.zeros(4), rtol=0, atol=1e-5)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    network(x)
    assert norm.num_batches_tracked == 2  # and the network's own pass still counts
    assert not torch.equal(norm.running_mean, before["running_mean"])


def test_batch_norm_in_eval_mode_uses_its_running_statistics() -> None:
    network = Stages().eval()
    norm = network.stages[1]
    norm.running_mean.fill_(5.0)
    x = torch.randn(2, 1, 4, 4, 4)
    torch.testing.assert_close(Tap("stages.1")(network, x), norm(network.stages[0](x)))


def test_wrappers_are_stripped() -> None:
    network = Stages().eval()
    x = torch.randn(2, 1, 4, 4, 4)
    expected = Tap("head")(network, x)
    for wrapped in (
        nn.DataParallel(network),
        Compiled(network),
        Compiled(nn.DataParallel(network)),
    ):
        assert plain_module(wrapped) is network
        torch.testing.assert_close(Tap("head")(wrapped, x), expected, rtol=0, atol=0)
        assert Tap("head").module(wrapped) is network.head
    assert plain_module(network) is network


def test_probe_restores_modes_and_the_random_state() -> None:
    network = Stages().train()
    network.attention.eval()
    network.head = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Dropout(0.5))
    modes = {name: module.training for name, module in network.named_modules()}
    statistics = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = hooks_of(network)
    shape, needed = Tap("head").probe(network, torch.zeros(1, 1, 4, 4, 4))
    assert torch.equal(torch.rand(3), expected)
    assert shape == (4, 2, 2, 2)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert hooks_of(network) == before
    for name, value in network.state_dict().items():
        assert torch.equal(value, statistics[name]), name
    assert {"", "stages.0", "stages.1", "attention", "attention.out_proj", "head.0"} <= needed
    assert not {"decoder", "unused"} & needed


@torch.no_grad()
def test_pruning_keeps_weights_that_are_used_without_a_call() -> None:
    """``nn.MultiheadAttention`` reads ``out_proj``'s weights and never calls it."""
    network, x = Stages().eval(), torch.randn(2, 1, 4, 4, 4)
    nn.init.normal_(network.attention.out_proj.bias)
    tap = Tap("head")
    pruned = _pruned_copy(network, tap.probe(network, x)[1])
    torch.testing.assert_close(tap(pruned, x), tap(network, x), rtol=0, atol=0)
    assert torch.equal(pruned.attention.out_proj.weight, network.attention.out_proj.weight)
    assert pruned.attention.out_proj.weight is not network.attention.out_proj.weight
    kept = {name for name, _ in pruned.named_parameters()}
    assert not any(name.startswith(("decoder", "unused")) for name in kept)


@pytest.mark.parametrize(
    "output",
    [torch.zeros(2, 7, 5), torch.zeros(2, 5), {"a": 1}, (), torch.zeros(2, 4, 8, 8)],
    ids=["tokens", "flat", "dict", "nothing", "2d"],
)
def test_outputs_that_are_no_feature_map_are_told(output: Any) -> None:
    with pytest.raises(ValueError, match="tap another module"):
        as_feature_map(output, (16, 16, 16))


def test_a_feature_map_in_a_tuple_is_taken_as_it_is() -> None:
    feature = torch.randn(2, 3, 4, 5, 6)
    assert as_feature_map((feature, None), (32, 32, 32)) is feature
