"""UNETR with fewer transformer layers than MONAI's twelve."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import UNETR
from torch import Tensor, nn

from mod_components.errors import SettingsError

__all__ = ["ShallowUNETR"]

LAYERS = 12  # of MONAI's UNETR, fixed in its code


class ShallowUNETR(UNETR):
    """MONAI's ``UNETR`` cut to its first transformer layers.

    The authors' logs of MOD show six layers and a dropout of 0.3 where the paper and MONAI have
    twelve layers; this class is there to compare with those logs. The logs do not say which layers
    the decoder reads. Here MONAI's places, after layers 4, 7 and 10 of 12 (UNETR,
    https://arxiv.org/abs/2103.10504), are scaled to the depth: 2, 4 and 5 of 6. With twelve layers
    it is MONAI's network.

    Args:
        num_layers: number of transformer layers, 4 to 12.
        arguments: as for ``monai.networks.nets.UNETR``.

    Raises:
        SettingsError: for any other number of layers.
    """

    def __init__(self, *, num_layers: int = 6, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not 4 <= num_layers <= LAYERS:
            raise SettingsError(f"num_layers must lie between 4 and {LAYERS}, got {num_layers}.")
        self.num_layers = num_layers
        self.vit.blocks = self.vit.blocks[:num_layers]
        self.vit.register_forward_hook(_spread_states)


def _spread_states(
    _vit: nn.Module, _inputs: Any, output: tuple[Tensor, list[Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Let MONAI's forward pass, which reads states 3, 6 and 9 of twelve, find those of fewer."""
    tokens, states = output
    return tokens, [states[len(states) * layer // LAYERS] for layer in range(LAYERS)]
