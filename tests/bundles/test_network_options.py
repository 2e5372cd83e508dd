"""Options of the networks reach them from the command line, and from a training's own record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import nn

from mod_components.networks import SegMamba, ShallowUNETR
from mod_components.release import backbones
from tests.backbones import BACKBONES, small_settings
from tests.bundles.conftest import REPOSITORY


def network_of(name: str, config: str = "inference.json", **options: Any) -> nn.Module:
    path = REPOSITORY / "bundles" / f"{name}_mod" / "configs" / config
    settings = {"roi_size": [64, 64, 64], **small_settings(name), **options}
    workflow = ConfigWorkflow(str(path), logging_file=False, workflow_type=None, **settings)
    network = workflow.parser.get_parsed_content("network_def")
    assert isinstance(network, nn.Module)
    return network


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False)])
def test_options_that_are_true_or_false(value: str, expected: bool) -> None:
    """Such options come as strings."""
    assert network_of("segmamba", uncertainty=value).uncertainty is expected
    attention = network_of("unetrpp", scrambled=value).encoder.stages[0][0].epa
    assert attention.scrambled is expected


def test_the_gate_of_segmamba() -> None:
    network = network_of("segmamba", gate="additive")
    assert isinstance(network, SegMamba)
    assert not network.encoder.stages[0][1].multiplies
    assert network_of("segmamba").encoder.stages[0][1].multiplies


@pytest.mark.parametrize("config", ["train.json", "evaluate.json", "inference.json"])
def test_a_shallow_unetr(config: str) -> None:
    options = {
        "network_def#_target_": "mod_components.networks.ShallowUNETR",
        "network_def#num_layers": 6,
    }
    network = network_of("unetr", config, **options)
    assert isinstance(network, ShallowUNETR)
    assert len(network.vit.blocks) == 6


@pytest.mark.parametrize("config", ["evaluate.json", "inference.json"])
def test_they_are_found_in_the_record_of_the_training(config: str, tmp_path: Path) -> None:
    settings = {**small_settings("unetrpp"), "scrambled": "true", "roi_size": [64, 32, 96]}
    (tmp_path / "training.json").write_text(json.dumps({"settings": settings}))
    path = REPOSITORY / "bundles" / "unetrpp_mod" / "configs" / config
    workflow = ConfigWorkflow(
        str(path), logging_file=False, workflow_type=None, checkpoint=str(tmp_path / "model.pt")
    )
    network = workflow.parser.get_parsed_content("network_def")
    assert network.img_size == (64, 32, 96)
    assert network.encoder.stages[0][0].epa.scrambled


def test_weights_without_a_record_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(network_of("unetrpp").state_dict(), tmp_path / "model.pt")
    checkpoint = str(tmp_path / "model.pt")
    configs = REPOSITORY / "bundles" / "unetrpp_mod" / "configs"
    for config, item in (("evaluate.json", "trained"), ("inference.json", "note")):
        workflow = ConfigWorkflow(
            str(configs / config), logging_file=False, workflow_type=None, checkpoint=checkpoint
        )
        workflow.parser.get_parsed_content(item)
    assert f"no {tmp_path / 'training.json'}: the network is built with" in caplog.text
    assert f"no training.json beside {checkpoint}" in capsys.readouterr().err


@pytest.mark.parametrize("name", BACKBONES)
def test_a_training_records_its_network(name: str) -> None:
    """Class and arguments as they are, from which any bundle builds the network of a checkpoint."""
    path = REPOSITORY / "bundles" / f"{name}_mod" / "configs" / "train.json"
    settings = {"roi_size": [64, 64, 64], **small_settings(name), "network_def#out_channels": 5}
    # an argument that the bundle does not give, and that changes no shape
    more = {"network_def#normalize": False} if "swin" in name else {}
    workflow = ConfigWorkflow(str(path), logging_file=False, workflow_type=None, **settings, **more)
    record = json.loads(json.dumps(workflow.parser.get_parsed_content("settings#network")))
    row = backbones()[name]
    assert record.pop("target") == row["network_def"]["_target_"]
    expected = {key: value for key, value in row["network_def"].items() if key != "_target_"}
    if more:
        assert record.pop("normalize") is False
    assert record.keys() == expected.keys()
    everything = {**row["network_settings"], **settings}
    for key, value in expected.items():
        filled = everything[value[1:]] if str(value).startswith("@") else value
        assert record[key] == (5 if key == "out_channels" else filled), key
