"""UNETR++: its attention against the equations, its size against the published one."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mod_components.errors import SettingsError
from mod_components.networks import Tap
from mod_components.networks.unetr_pp import EPA, UNETRPP

SMALL: dict[str, Any] = {
    "img_size": [32, 64, 32],
    "feature_size": 4,
    "hidden_dims": (4, 8, 12, 16),
    "depths": (1, 1, 1, 1),
    "num_heads": 2,
}


def small(**changes: Any) -> UNETRPP:
    """A narrow network whose attention is not hidden by γ = 1e-6."""
    torch.manual_seed(1)
    network = UNETRPP(**{**SMALL, **changes})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
    return network


def small_epa(scrambled: bool = False) -> EPA:
    torch.manual_seed(2)
    epa = EPA(tokens=6, channels=6, projected_tokens=4, num_heads=2, scrambled=scrambled)
    with torch.no_grad():
        epa.temperature.copy_(torch.tensor([3.0, -2.0]).view(2, 1, 1))
        epa.temperature2.copy_(torch.tensor([1.5, 4.0]).view(2, 1, 1))
    return epa.double().eval()


def softmax(row: np.ndarray) -> np.ndarray:
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def branches_by_the_equations(epa: EPA, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both branches (B, heads, N, d), one sample, head, query and column at a time."""
    batch, n, channels = x.shape
    heads, d = epa.num_heads, channels // epa.num_heads
    weight, projection = epa.qkvv.weight.detach().numpy(), epa.projection.detach().numpy()
    t1, t2 = epa.temperature.flatten().tolist(), epa.temperature2.flatten().tolist()
    channel, spatial = np.zeros((2, batch, heads, n, d))
    for b in range(batch):
        for h in range(heads):
            columns = [slice(p * channels + h * d, p * channels + (h + 1) * d) for p in range(4)]
            q, k, v_channel, v_spatial = (x[b] @ weight[c].T for c in columns)  # (N, d) each
            k_projected, v_projected = projection.T @ k, projection.T @ v_spatial  # (P, d)
            q_unit = q / np.sqrt((q**2).sum(axis=0))
            k_unit = k / np.sqrt((k**2).sum(axis=0))
            for i in range(d):
                weights = softmax(
                    np.array([t1[h] * (q_unit[:, i] @ k_unit[:, j]) for j in range(d)])
                )
                channel[b, h, :, i] = sum(weights[j] * v_channel[:, j] for j in range(d))
            for token in range(n):
                weights = softmax(np.array([t2[h] * (q_unit[token] @ key) for key in k_projected]))
                spatial[b, h, token] = weights @ v_projected
    return channel, spatial


def merged(branch: np.ndarray) -> np.ndarray:
    """Heads side by side: (B, heads, N, d) -> (B, N, heads · d)."""
    return np.concatenate(list(branch.swapaxes(0, 1)), axis=-1)


@torch.no_grad()
def test_epa_follows_the_equations() -> None:
    epa = small_epa()
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    channel, spatial = branches_by_the_equations(epa, x.numpy())
    assert min(abs(channel).mean(), abs(spatial).mean()) > 0.02  # neither branch hides the other
    expected = torch.from_numpy(merged(channel) + merged(spatial))
    torch.testing.assert_close(epa(x), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_epa_with_more_projected_tokens_than_tokens() -> None:
    torch.manual_seed(3)
    epa = EPA(tokens=2, channels=4, projected_tokens=32, num_heads=2).double().eval()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    expected = sum(merged(branch) for branch in branches_by_the_equations(epa, x.numpy()))
    torch.testing.assert_close(epa(x), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_scrambled_epa_misplaces_the_spatial_branch_as_the_published_code_does() -> None:
    """That code lists the values by channel, head and token, and cuts the list into tokens."""
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    epa, right = small_epa(scrambled=True), small_epa()
    channel, spatial = branches_by_the_equations(epa, x.numpy())
    batch, heads, n, d = spatial.shape
    expected = merged(channel)
    for b in range(batch):
        listed = [spatial[b, h, t, c] for c in range(d) for h in range(heads) for t in range(n)]
        for place, value in enumerate(listed):
            expected[b, place // (heads * d), place % (heads * d)] += value
    torch.testing.assert_close(epa(x), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    assert epa.state_dict().keys() == right.state_dict().keys()
    assert (epa(x) - right(x)).abs().max() > 0.01


@torch.no_grad()
def test_epa_drops_attention_weights_in_train_mode_only() -> None:
    epa, x = small_epa(), torch.randn(2, 6, 6, dtype=torch.float64)
    assert torch.equal(epa(x), epa(x))
    epa.train()
    assert not torch.equal(epa(x), epa(x))


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        network = UNETRPP()
    count = sum(p.numel() for p in network.parameters())

    def block(tokens: int, c: int, p: int) -> int:
        around = 2 * c + c + tokens * c  # layer norm, γ, position
        epa = 4 * c * c + 2 * 4 + tokens * p
        return around + epa + 2 * (27 * c * c + 2 * c) + c * c + c

    fine = block(32**3, 32, 64) + block(16**3, 64, 64) + block(8**3, 128, 64)
    down = (64 * 4 * 32 + 8 * (32 * 64 + 64 * 128 + 128 * 256)) + 2 * (32 + 64 + 128 + 256)
    up = 8 * (256 * 128 + 128 * 64 + 64 * 32) + 64 * 32 * 16
    full = 27 * 4 * 16 + 27 * 16 * 16 + 4 * 16 + 2 * 27 * 16 * 16 + 16 * 3 + 3
    assert count == 3 * (2 * fine + block(4**3, 256, 32)) + down + up + full
    assert round(count / 1e6, 2) == 42.65


@torch.no_grad()
def test_logits_have_the_images_size_for_every_batch() -> None:
    network = small().eval()
    x = torch.randn(2, 4, 32, 64, 32)
    logits = network(x)
    assert logits.shape == (2, 3, 32, 64, 32)
    torch.testing.assert_close(network(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)
    assert network.train()(x).shape == (2, 3, 32, 64, 32)


def test_every_parameter_gets_a_gradient() -> None:
    network = small(in_channels=1, out_channels=2).train()
    network(torch.randn(2, 1, 32, 64, 32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(isinstance(value, Tensor) for value in network.state_dict().values())


@torch.no_grad()
def test_initial_values() -> None:
    network = UNETRPP(**{**SMALL, "hidden_dims": (32, 32, 32, 64)})
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
        elif isinstance(module, EPA):
            if name.startswith("encoder."):
                assert module.qkvv.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            bound = 1 / math.sqrt(module.projection.shape[1])
            assert 0.8 * bound < module.projection.abs().max() <= bound, name
            assert (module.temperature == 1).all(), name
            assert (module.temperature2 == 1).all(), name
    starts = {n.split(".")[-1]: p for n, p in network.named_parameters()}
    assert (starts["gamma"] == 1e-6).all()
    assert (starts["position"] == 0).all()


@torch.no_grad()
def test_position_tokens_are_in_row_major_order() -> None:
    """With every weight after it silenced, a block adds its position embedding to the image."""
    block: Any = small().get_submodule("encoder.stages.0.0").eval()
    for parameter in (block.gamma, block.pointwise.weight, block.pointwise.bias):
        parameter.zero_()
    block.position.normal_()
    feature = torch.randn(2, 4, 8, 16, 8)
    added = block(feature) - feature
    for i, j, k in ((0, 0, 1), (0, 3, 0), (5, 9, 7)):
        expected = block.position[:, (i * 16 + j) * 8 + k].expand(2, 4)
        torch.testing.assert_close(added[..., i, j, k], expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_for_another_batch() -> None:
    network = small().eval()
    traced = torch.jit.trace(network, torch.randn(1, 4, 32, 64, 32))
    x = torch.randn(2, 4, 32, 64, 32)
    torch.testing.assert_close(traced(x), network(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="size"):
        traced(torch.randn(1, 4, 32, 32, 32))


@torch.no_grad()
def test_the_tap_gets_the_deepest_feature_that_the_decoder_gets() -> None:
    network, x = small().eval(), torch.randn(2, 4, 32, 64, 32)
    feature = Tap("encoder.stages.3")(network, x)
    assert feature.shape == (2, 16, 1, 2, 1)
    got: list[Tensor] = []
    network.decoders[0].register_forward_pre_hook(lambda _m, args: got.append(args[0]))
    network(x)
    assert torch.equal(feature, got[0])
    shape, needed = Tap("encoder.stages.3").probe(network, x)
    assert shape == (16, 1, 2, 1)
    assert not any(name.startswith(("encoder1", "decoders", "out")) for name in needed)


def test_batch_norm_running_statistics_are_not_touched_by_masked_passes() -> None:
    network, x = small().train(), torch.randn(2, 4, 32, 64, 32)
    network(x)  # running statistics that are not the initial ones
    before = copy.deepcopy(network.state_dict())
    names = [n for n in before if "running_" in n or n.endswith("num_batches_tracked")]
    assert len(names) == 3 * 2 * 7  # two batch norms in each of seven blocks
    Tap("encoder.stages.3")(network, x * (torch.rand_like(x) > 0.4)).sum().backward()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    network(x)
    assert not any(torch.equal(network.state_dict()[name], before[name]) for name in names)


@pytest.mark.parametrize("value", [True, "true"])
def test_scrambled_reaches_every_attention(value: Any) -> None:
    network = small(scrambled=value)
    flags = [module.scrambled for module in network.modules() if isinstance(module, EPA)]
    assert flags == [True] * 7
    assert not any(m.scrambled for m in small().modules() if isinstance(m, EPA))


@pytest.mark.parametrize("size", [(32, 32, 32), (32, 64, 64), (64, 32, 32)])
def test_images_of_another_size_are_told(size: tuple[int, int, int]) -> None:
    """(64, 32, 32) has as many tokens as (32, 64, 32), so that nothing else would notice."""
    with pytest.raises(SettingsError, match=r"img_size is \(32, 64, 32\)"):
        small()(torch.zeros(1, 4, *size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": (32, 48, 32)}, "img_size must be three multiples of 32"),
        ({"img_size": (32, 32)}, "img_size must be three"),
        ({"img_size": 32}, "img_size must be three"),
        ({"img_size": (32, 0, 32)}, "img_size must be three"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_heads": 3}, r"hidden_dims must be four multiples of num_heads \(3\)"),
        ({"hidden_dims": (8, 16, 32)}, "hidden_dims must be four"),
        ({"depths": (1, 0, 1, 1)}, "depths must be four"),
        ({"dropout_rate": 1.0}, "dropout_rate must be at least 0 and below 1"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        UNETRPP(**{**SMALL, **settings})
