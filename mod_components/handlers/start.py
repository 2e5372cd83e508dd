"""The weights that a training begins with."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from mod_components.errors import SettingsError
from mod_components.handlers.weights import check_fit, load_weights, read_checkpoint
from mod_components.networks import PointProbe, encoder_modules, freeze

__all__ = ["start_weights"]

logger = logging.getLogger("mod_components.checkpoint")

Network = TypeVar("Network", bound=nn.Module)


def start_weights(
    network: Network,
    init_from: str | os.PathLike[str] = "",
    probe_from: str | os.PathLike[str] = "",
    *,
    tap: str,
    size: Sequence[int],
) -> Network:
    """Give a network the weights that its training begins with.

    Args:
        network: the network with its initial weights, not wrapped; changed in place.
        init_from: a ``model.pt`` to begin with; empty for none.
        probe_from: a ``model.pt`` whose encoder alone is taken and kept as it is, while the rest
            is trained from its initial weights (a linear probe, MOD's Table III); empty for none.
        tap: dotted name of the module where the encoder ends.
        size: (D, H, W) of an image that the network takes, in voxels.

    Returns:
        The network.

    Raises:
        CheckpointError: when a file is missing, damaged, or does not fit.
        SettingsError: when both files are given.
    """
    init_from, probe_from = os.path.expanduser(init_from), os.path.expanduser(probe_from)
    if init_from and probe_from:
        raise SettingsError(
            "--init_from begins with a whole network and --probe_from with an encoder: give one."
        )
    if init_from:
        load_weights(network, init_from)
        return network
    if not probe_from:
        return network
    if isinstance(network, PointProbe):  # frozen already, and built around the whole network
        load_weights(network.encoder, probe_from)
        return network
    path = Path(probe_from)
    weights = read_checkpoint(path)
    check_fit(network, weights, path)
    names = encoder_modules(network, tap, size)
    taken = {key: value for key, value in weights.items() if key.rpartition(".")[0] in names}
    network.load_state_dict(taken, strict=False)
    freeze(module for name, module in network.named_modules() if name in names)
    logger.info("the encoder of %s: %d of %d tensors, frozen", path, len(taken), len(weights))
    return network
