from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mod_components.errors import CheckpointError, SettingsError
from mod_components.handlers import start_weights
from mod_components.networks import PointProbe, encoder_modules
from tests.backbones import build_network

SIZE = (64, 64, 64)
TAP = "swinViT.layers3.0"


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """Two of one kind with different weights."""
    torch.manual_seed(0)
    return build_network("swinunetr", SIZE), build_network("swinunetr", SIZE)


@pytest.fixture
def file(networks: tuple[nn.Module, nn.Module], tmp_path: Path) -> Path:
    """Weights of the first."""
    path = tmp_path / "model.pt"
    torch.save(networks[0].state_dict(), path)
    return path


def test_without_a_file_the_weights_stay(networks: tuple[nn.Module, nn.Module]) -> None:
    before = copy.deepcopy(networks[1].state_dict())
    assert start_weights(networks[1], tap=TAP, size=SIZE) is networks[1]
    assert all(torch.equal(v, before[k]) for k, v in networks[1].state_dict().items())


def test_a_whole_network(networks: tuple[nn.Module, nn.Module], file: Path) -> None:
    network = start_weights(copy.deepcopy(networks[1]), file, tap=TAP, size=SIZE)
    own = networks[0].state_dict()
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_an_encoder_alone(networks: tuple[nn.Module, nn.Module], file: Path) -> None:
    network = start_weights(copy.deepcopy(networks[1]), "", file, tap=TAP, size=SIZE)
    names = encoder_modules(networks[0], TAP, SIZE)
    for key, parameter in network.named_parameters():
        inside = key.rpartition(".")[0] in names
        source = networks[0] if inside else networks[1]
        assert torch.equal(parameter, source.get_parameter(key)), key
        assert parameter.requires_grad != inside, key


def test_the_encoder_of_a_point_probe(networks: tuple[nn.Module, nn.Module], file: Path) -> None:
    probe = PointProbe(copy.deepcopy(networks[1]), TAP, SIZE)
    start_weights(probe, "", file, tap=TAP, size=SIZE)
    own = networks[0].state_dict()
    assert all(torch.equal(value, own[key]) for key, value in probe.encoder.state_dict().items())


def test_both_at_once(networks: tuple[nn.Module, nn.Module], file: Path) -> None:
    with pytest.raises(SettingsError, match="give one"):
        start_weights(networks[1], file, file, tap=TAP, size=SIZE)


@pytest.mark.parametrize("probe", [False, True])
def test_weights_of_another_network(
    networks: tuple[nn.Module, nn.Module], tmp_path: Path, probe: bool
) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    files = ("", path) if probe else (path, "")
    with pytest.raises(CheckpointError, match=r"model\.pt does not fit SwinUNETR"):
        start_weights(networks[1], *files, tap=TAP, size=SIZE)
