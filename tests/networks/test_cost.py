"""After a training with MOD a network costs what it costs without, and computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from mod_components.networks import freeze_unused
from tests.backbones import build_mod, build_network, two_quick
from tests.mod.test_backbones import ROI, one_step

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def parts(network: nn.Module) -> dict[str, tuple[object, ...]]:
    """Class of each module by name, hooks on it, and whether its forward is another's."""
    return {
        name: (
            type(module),
            *(len(getattr(module, hooks)) for hooks in HOOKS),
            "forward" in vars(module),
            is_parametrized(module),
        )
        for name, module in network.named_modules()
    }


def shapes(network: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    """Every parameter and buffer."""
    return [(name, value.shape, value.dtype) for name, value in network.state_dict().items()]


def logits_and_flops(network: nn.Module, image: Tensor) -> tuple[Tensor, dict[str, int]]:
    """One window, as inference computes it, and its FLOPs by module and in all."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = network.eval()(image)
    flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    return logits, flops


@pytest.mark.parametrize("name", two_quick())
def test_a_trained_network_costs_what_the_plain_one_costs(name: str) -> None:
    trained = freeze_unused(build_network(name, ROI), ROI)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    one_step(trained, build_mod(name, trained, ROI))
    assert any((before[key] != value).any() for key, value in trained.state_dict().items())

    torch.manual_seed(7)  # other weights than those that were trained
    plain = build_network(name, ROI)
    assert shapes(trained) == shapes(plain)
    assert parts(trained) == parts(plain)
    plain.load_state_dict(trained.state_dict(), strict=True)
    image = torch.randn(1, 4, *ROI)
    (logits, flops), (expected, expected_flops) = (
        logits_and_flops(network, image) for network in (trained, plain)
    )
    assert flops == expected_flops
    assert flops["Global"] > 1e6
    assert torch.equal(logits, expected)
