"""Tap, masks and predictor fit each backbone of the table; MOD's passes leave no mark on it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.losses import DiceFocalLoss
from torch import nn

from mod_components.mod import (
    Attach,
    DensePredictor,
    MaskedViews,
    parameter_groups,
)
from mod_components.release import backbones
from mod_components.settings import check_training_settings
from tests.backbones import BACKBONES, build_mod, build_network

ROI = (64, 64, 64)
# channels of the tap at the published sizes and its stride, as the paper's table has them
TAPS = {
    "vit": (768, 16),
    "unetr": (768, 16),
    "unetrpp": (256, 32),
    "swinunetr": (384, 16),
    "swinunetrv2": (384, 16),
    "segmamba": (384, 16),
}


def one_step(
    network: nn.Module, mod: dict[str, Any], roi: Sequence[int] = ROI
) -> SupervisedTrainer:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(4, *roi, generator=generator)
    label = (torch.rand(3, *roi, generator=generator) < 0.3).float()
    torch.manual_seed(1)  # of dropout and drop path
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader([{"image": image, "label": label, "case": "a"}], batch_size=1),
        network=network,
        optimizer=torch.optim.AdamW(parameter_groups(network, mod, 0.05), lr=1e-3),
        loss_function=DiceFocalLoss(sigmoid=True),
        decollate=False,
        train_handlers=[Attach(mod)],
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize("name", TAPS)
def test_published_tap(name: str) -> None:
    """Shape of the feature at the published size, without computing it."""
    row = backbones()[name]
    network = build_network(name, row["roi_size"], small=False).to("meta")
    views = MaskedViews(
        network, row["tap"], row["roi_size"], layer_norm=row["tap_layer_norm"], device="meta"
    )
    channels, stride = TAPS[name]
    assert views.feature_shape == (channels, *(side // stride for side in row["roi_size"]))
    assert views.stride == stride
    assert row["mask_cell"] == max(16, stride)
    predictor = DensePredictor(views)
    shuffled = isinstance(predictor.decoder, nn.Sequential) and len(predictor.decoder) == 2
    assert shuffled == ((channels + 1) * 4 * stride**3 <= 15_000_000)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_with_all_of_mod(name: str) -> None:
    network = build_network(name, ROI)
    mod = build_mod(name, network, ROI)
    trainer = one_step(network, mod)
    for term in ("loss_seg", "loss_token", "loss_class", "loss_recon"):
        assert torch.isfinite(torch.as_tensor(trainer.state.output[term])), term
    teacher = mod["teacher"].copies["encoder"]
    own = dict(network.named_parameters())
    assert 0 < len(list(teacher.parameters())) <= len(own)
    assert {name for name, _ in teacher.named_parameters()} <= own.keys()


@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_on_the_thinnest_crop(name: str) -> None:
    """The least that ``check_training_settings`` lets through: one side long, two short."""
    row = backbones()[name]
    roi = (row["smallest_size"], row["size_multiple"], row["size_multiple"])
    check_training_settings(1, roi, 1, row["size_multiple"], row["smallest_size"])
    network = build_network(name, roi)
    trainer = one_step(network, build_mod(name, network, roi), roi)
    for term in ("loss_seg", "loss_token", "loss_class", "loss_recon"):
        assert torch.isfinite(torch.as_tensor(trainer.state.output[term])), term
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_norm_layers_see_the_clean_batch_alone(name: str) -> None:
    """Buffers such as BatchNorm's running statistics are those of a training without MOD."""
    plain = build_network(name, ROI)
    network = copy.deepcopy(plain)
    one_step(plain, {})
    one_step(network, build_mod(name, network, ROI))
    expected = dict(plain.named_buffers())
    for key, value in network.named_buffers():
        assert torch.equal(value, expected[key]), key
    assert all(expected[key].abs().sum() > 0 for key in expected if "running_mean" in key)


def test_unetrpp_is_a_case_in_point() -> None:
    names = [name for name, _ in build_network("unetrpp", ROI).named_buffers()]
    assert any("running_mean" in name for name in names)


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_decayed(name: str) -> None:
    """Matrices and kernels, and nothing that the method or a backbone's authors keep out."""
    network = build_network(name, ROI)
    decayed, undecayed = parameter_groups(network, {}, 0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    kept_out = ("norm", "bias", "position", "A_log", ".D", "temperature", "gamma", "relative")
    for parameter in decayed["params"]:
        key = names[id(parameter)]
        assert key.endswith(("weight", "projection")), key
        assert parameter.ndim > 1, key
        assert not any(word in key.rpartition(".")[2] for word in kept_out), key
    total = len(decayed["params"]) + len(undecayed["params"])
    assert total == len(list(network.parameters()))
