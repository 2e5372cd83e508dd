"""UNETR of another depth reads the states that it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR

from mod_components.errors import SettingsError
from mod_components.networks import ShallowUNETR, Tap

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 3,
    "img_size": (32, 32, 32),
    "feature_size": 4,
    "hidden_size": 24,
    "mlp_dim": 24,
    "num_heads": 2,
}


def test_with_twelve_layers_it_is_monais() -> None:
    network, monai = ShallowUNETR(num_layers=12, **SMALL).eval(), UNETR(**SMALL).eval()
    monai.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), monai(x))


def test_six_layers_feed_the_decoder_after_the_second_fourth_and_fifth() -> None:
    network = ShallowUNETR(num_layers=6, **SMALL).eval()
    assert len(network.vit.blocks) == 6
    read: dict[str, torch.Tensor] = {}
    for name in ("encoder2", "encoder3", "encoder4", "decoder5"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: read.__setitem__(name, inputs[0])
        )
    x = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        network(x)
        state = network.vit.patch_embedding(x)
        states = []
        for block in network.vit.blocks:
            state = block(state)
            states.append(state)
        expected = {
            "encoder2": states[1],
            "encoder3": states[3],
            "encoder4": states[4],
            "decoder5": network.vit.norm(states[5]),
        }
        for name, tokens in expected.items():
            torch.testing.assert_close(read[name].flatten(2).transpose(1, 2), tokens)
        torch.testing.assert_close(
            Tap("vit")(network, x).flatten(2).transpose(1, 2), expected["decoder5"]
        )


@pytest.mark.parametrize("layers", [3, 13])
def test_depths_that_do_not_fit_are_refused(layers: int) -> None:
    with pytest.raises(SettingsError, match="num_layers must lie between 4 and 12"):
        ShallowUNETR(num_layers=layers, **SMALL)
