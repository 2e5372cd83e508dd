"""SegMamba's blocks against their equations, its size, its inputs, and the feature for the tap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mod_components.errors import SettingsError
from mod_components.mod.teacher import _pruned_copy
from mod_components.networks import Tap
from mod_components.networks.segmamba import GatedSpatialConv, SegMamba, weigh_by_uncertainty

FEATURE = "encoder.outputs.3"
SMALL: dict[str, Any] = {
    "feature_sizes": (8, 8, 16, 16),
    "depths": (1, 1, 1, 1),
    "hidden_size": 16,
    "d_state": 4,
}


def small(**settings: Any) -> SegMamba:
    torch.manual_seed(0)
    return SegMamba(**(SMALL | settings))


@pytest.fixture(scope="module")
def network() -> SegMamba:
    return small().eval()


def layer(z: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Convolution, instance norm, ReLU from the definitions."""
    kernel = weights[f"{name}.0.weight"]
    z = F.conv3d(z, kernel, weights[f"{name}.0.bias"], padding=kernel.shape[-1] // 2)
    mean = z.mean((2, 3, 4), keepdim=True)
    variance = ((z - mean) ** 2).mean((2, 3, 4), keepdim=True)
    return ((z - mean) / (variance + 1e-5).sqrt()).clamp(min=0)


@pytest.mark.parametrize("gate", ["multiplicative", "additive"])
@torch.no_grad()
def test_gated_convolution_is_its_equation(gate: str) -> None:
    torch.manual_seed(0)
    module = GatedSpatialConv(5, gate).double()
    weights = module.state_dict()
    z = torch.randn(2, 5, 3, 4, 5, dtype=torch.float64)
    point = layer(z, weights, "point")
    if gate == "multiplicative":
        joined, kernels = layer(z, weights, "local") * point, [1, 3, 3]
    else:
        joined = layer(layer(z, weights, "local.0"), weights, "local.1") + point
        kernels = [1, 1, 3, 3]
    assert sorted(w.shape[-1] for n, w in weights.items() if n.endswith("weight")) == kernels
    torch.testing.assert_close(module(z), z + layer(joined, weights, "merge"))


def test_uncertainty_is_the_formula() -> None:
    z = np.random.default_rng(0).normal(0, 3, (2, 4, 3, 2, 5))
    mean = 1 / (1 + np.exp(-z.mean(axis=1)))
    uncertainty = -mean * np.log(mean)
    expected = z + z * (1 - uncertainty[:, None])
    np.testing.assert_allclose(
        weigh_by_uncertainty(torch.from_numpy(z)).numpy(), expected, rtol=1e-12
    )
    far = torch.full((1, 2, 1, 1, 1), -200.0, requires_grad=True)  # the sigmoid is 0 in float32
    weigh_by_uncertainty(far).sum().backward()
    assert weigh_by_uncertainty(far).flatten().tolist() == [-400.0, -400.0]
    assert far.grad is not None
    assert far.grad.flatten().tolist() == [2.0, 2.0]


@torch.no_grad()
def test_uncertainty_weighs_the_three_skips_and_nothing_else(network: SegMamba) -> None:
    weighing = small(uncertainty=True).eval()
    weighing.load_state_dict(network.state_dict())
    x, caught = torch.randn(1, 4, 32, 32, 32), {}
    for name, net in (("plain", network), ("weighed", weighing)):
        handles = [
            net.get_submodule(f"encoder{i}").register_forward_pre_hook(
                lambda _m, args, key=(name, i): caught.update({key: args[0]})
            )
            for i in range(1, 6)
        ]
        net(x)
        for handle in handles:
            handle.remove()
    for i in (1, 5):
        assert torch.equal(caught["weighed", i], caught["plain", i])
    for i in (2, 3, 4):
        assert torch.equal(caught["weighed", i], weigh_by_uncertainty(caught["plain", i]))


@pytest.mark.parametrize(
    "settings", [{}, {"gate": "additive", "uncertainty": True}], ids=["paper", "code"]
)
def test_full_size_has_the_published_number_of_parameters(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = SegMamba(**settings)
    count = sum(p.numel() for p in network.parameters())
    # the paper's gate has one 1³ convolution fewer in each stage than the authors' code
    fewer = 0 if settings else sum(c * c + c for c in (48, 96, 192, 384))
    assert count == 67_416_147 - fewer
    assert count == pytest.approx(67.4e6, rel=0.01)
    kept = [n for n, _ in network.named_parameters() if n.rsplit(".", 1)[-1] in ("A_log", "D")]
    assert len(kept) == 2 * 3 * sum((2, 2, 2, 2))  # what optimisers must not decay


@pytest.mark.parametrize("size", [(33, 40, 47), (20, 20, 20), (16, 9, 17)])
@torch.no_grad()
def test_odd_sizes_are_padded_behind_and_cropped(
    network: SegMamba, size: tuple[int, int, int]
) -> None:
    x = torch.randn(1, 4, *size)
    whole = torch.zeros(1, 4, *(-(-side // 16) * 16 for side in size))
    inside = (..., *(slice(side) for side in size))
    whole[inside] = x
    logits = network(x)
    assert logits.shape == (1, 3, *size)
    torch.testing.assert_close(logits, network(whole)[inside], rtol=0, atol=0)


@torch.no_grad()
def test_multiples_of_sixteen_reach_the_encoder_as_they_are(network: SegMamba) -> None:
    x, inputs = torch.randn(2, 4, 32, 16, 48), []
    handle = network.encoder.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    logits = network(x)
    handle.remove()
    assert inputs[0] is x
    assert logits.shape == (2, 3, 32, 16, 48)
    torch.testing.assert_close(logits[1:], network(x[1:]), rtol=1e-3, atol=1e-4)


def test_too_small_images_are_told(network: SegMamba) -> None:
    with pytest.raises(SettingsError, match=r"roi_size\): 16x8x16 voxels are too few.*32"):
        network(torch.zeros(1, 4, 16, 8, 16))


@pytest.mark.parametrize("settings", [{}, {"gate": "additive", "uncertainty": True}])
def test_every_parameter_is_trained(settings: dict[str, Any]) -> None:
    network = small(**settings).train()
    x = torch.randn(2, 4, 32, 32, 32)
    loss = (network(x) * torch.randn(2, 3, 32, 32, 32)).sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # instance norm takes away what the bias of a gated convolution adds
        cancelled = name.endswith("0.bias") and any(
            part in name for part in (".local.", ".point.", ".merge.")
        )
        assert cancelled or parameter.grad.abs().max() > 1e-6, name


def test_computing_again_changes_no_gradient_and_keeps_less() -> None:
    x = torch.randn(1, 4, 32, 32, 32)
    gradients, kept = [], []
    for use_checkpoint in ("true", "false"):  # as the command line gives them
        network = small(use_checkpoint=use_checkpoint).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            feature = Tap(FEATURE)(network, x)
        kept.append(sum(sizes))
        (feature.square().sum() + network(x).square().sum()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert kept[0] < 0.7 * kept[1]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@torch.no_grad()
def test_tap_gives_the_last_stage_without_the_decoder(network: SegMamba) -> None:
    x = torch.randn(1, 4, 32, 32, 64)
    tap = Tap(FEATURE)
    shape, needed = tap.probe(network, torch.zeros_like(x))
    assert shape == (16, 2, 2, 4)
    feature = tap(network, x)
    torch.testing.assert_close(feature, network.encoder(x)[3], rtol=1e-4, atol=1e-4)
    names = {name for name in needed if "." not in name and name}
    assert names == {"encoder"}
    assert not any(f"encoder.outputs.{i}" in needed for i in range(3))
    assert torch.equal(tap(_pruned_copy(network, needed), x), feature)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_traced_network_is_the_network(network: SegMamba) -> None:
    traced = torch.jit.trace(network, torch.randn(1, 4, 32, 32, 32), check_trace=False)
    x = torch.randn(1, 4, 32, 32, 32)
    torch.testing.assert_close(traced(x), network(x))


@torch.no_grad()
def test_it_runs_under_autocast(network: SegMamba) -> None:
    x = torch.randn(1, 4, 32, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert float((logits.float() - network(x)).std()) < 0.1 * float(logits.float().std())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "none"}, r"gate: .*multiplicative, additive, got 'none'"),
        ({"feature_sizes": (8, 8, 16)}, r"feature_sizes: expected four"),
        ({"depths": (1, 1, 1, 0)}, r"depths: expected four numbers >= 1"),
        ({"d_state": 0}, r"d_state: .*>= 1, got 0"),
        ({"out_channels": 0}, r"out_channels"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SegMamba(**settings)
