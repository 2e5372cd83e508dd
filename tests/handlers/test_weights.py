"""Weights from files: strict, and told apart from what they are not."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mod_components import files
from mod_components.errors import CheckpointError
from mod_components.handlers.weights import check_fit, first_not_finite, load_weights
from tests.toys import ToyNetwork


def test_load_weights_is_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = ToyNetwork()
    files.save_tensors(network.state_dict(), tmp_path / "model.pt")
    fresh = ToyNetwork()
    with caplog.at_level(logging.INFO, logger="mod_components.checkpoint"):
        assert load_weights(nn.DataParallel(fresh), tmp_path / "model.pt") is not fresh
    assert "loaded" in caplog.text
    assert torch.equal(fresh.stem[0].weight, network.stem[0].weight)

    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(fresh, tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(fresh, tmp_path / "broken.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_weights(fresh, tmp_path / "list.pt")
    files.save_tensors({"network": network.state_dict()}, tmp_path / "nested.pt")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(fresh, tmp_path / "nested.pt")


def test_check_fit_names_both_directions() -> None:
    network = nn.Linear(2, 3)
    check_fit(network, network.state_dict(), "x.pt")
    with pytest.raises(CheckpointError, match=r"bias: missing in the file, \(3,\) in the network"):
        check_fit(network, {"weight": torch.zeros(3, 2)}, "x.pt")
    extra = {**network.state_dict(), "more": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"more: \(2,\) in the file, missing in the network"):
        check_fit(network, extra, "x.pt")


def test_the_first_weight_that_is_not_finite_is_named() -> None:
    network = ToyNetwork(batch_norm=True)
    network.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # as causal masks have it
    assert first_not_finite(network) is None
    with torch.no_grad():
        network.decoder.bias[1] = math.inf
    assert first_not_finite(network) == "decoder.bias"
    fresh = ToyNetwork(batch_norm=True)
    fresh.stem[1].running_var[0] = math.nan
    assert first_not_finite(fresh) == "stem.1.running_var"
    assert first_not_finite(nn.GELU()) is None
