"""What makes a step quicker or smaller changes no gradient of the two-view step.

The reference is the method read literally: whole passes of student and teacher, MONAI's own
attention, a teacher that is a whole copy, updated parameter by parameter.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.losses import DiceFocalLoss
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mod_components.mod import Attach, MaskedViews
from mod_components.mod.teacher import ema_update
from mod_components.networks import Tap, prepare_network
from mod_components.networks import side_pass as side_pass_module
from mod_components.networks.side_pass import batch_statistics_kept
from mod_components.networks.tap import as_feature_map
from mod_components.release import backbones
from tests.backbones import build_mod, build_network, two_quick

ROI = (64, 64, 64)


class WholePass(Tap):
    """The feature of a pass that runs to the network's end, with the network as it is."""

    def __call__(self, network: nn.Module, x: Tensor) -> Tensor:
        caught: list[Any] = []
        hook = self.module(network).register_forward_hook(lambda *args: caught.append(args[2]))
        with hook, batch_statistics_kept(network):
            network(x)
        feature = as_feature_map(caught[0], x.shape[2:])
        if self.layer_norm:
            mean = feature.mean(1, keepdim=True)
            variance = feature.var(1, keepdim=True, correction=0)
            feature = (feature - mean) / (variance + 1e-5).sqrt()
        return feature


def first_gradients(
    name: str, network: nn.Module, literal: bool = False, **settings: Any
) -> dict[str, Tensor]:
    """Gradients of everything that is trained, after the first backward pass."""
    row = backbones()[name]
    torch.manual_seed(2)  # of the heads and the predictor
    mod = build_mod(name, network, ROI, **settings)
    if literal:
        views = mod["views"]
        assert isinstance(views, MaskedViews)
        views.refer(tap=WholePass(row["tap"], row["tap_layer_norm"]))
        views.encoder_modules = {key for key, _ in network.named_modules()}
    generator = torch.Generator().manual_seed(5)
    batch = {
        "case": ["a"],
        "image": torch.randn(1, 4, *ROI, generator=generator),
        "label": (torch.rand(1, 3, *ROI, generator=generator) < 0.3).float(),
    }
    modules = {"network": network, **{key: mod[key] for key in mod if key != "teacher"}}
    found: dict[str, Tensor] = {}

    def keep(_engine: Any) -> None:
        for part, module in modules.items():
            for key, p in module.named_parameters():
                if p.grad is not None:
                    found[f"{part}.{key}"] = p.grad.clone()

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader([0], collate_fn=lambda _: batch),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=DiceFocalLoss(sigmoid=True),
        decollate=False,
        train_handlers=[Attach(mod)],
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    torch.manual_seed(1)  # of dropout and drop path
    trainer.run()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    total = sum(float(x.square().sum()) for x in expected.values()) ** 0.5
    apart = sum(float((found[key] - x).square().sum()) for key, x in expected.items()) ** 0.5
    assert apart <= 2e-5 * total
    for key, x in expected.items():
        assert (found[key] - x).norm() <= 1e-3 * x.norm() + 1e-6 * total, key


@functools.cache
def start(name: str) -> nn.Module:
    """A small backbone without chance: a whole pass draws more random numbers than a short one."""
    torch.manual_seed(0)
    network = build_network(name, ROI)
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return network


@functools.cache
def literal(name: str) -> dict[str, Tensor]:
    return first_gradients(name, copy.deepcopy(start(name)), literal=True)


@pytest.mark.parametrize("name", two_quick())
def test_passes_that_stop_at_the_tap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch, "fast_attention", "fast_convolutions")
    assert_same(first_gradients(name, copy.deepcopy(start(name))), literal(name))


def leave_out(monkeypatch: pytest.MonkeyPatch, *contexts: str) -> None:
    for name in contexts:
        monkeypatch.setattr(side_pass_module, name, lambda _network: contextlib.nullcontext())


@pytest.mark.parametrize("name", ["swinunetr", "unetr"])
def test_fast_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch, "fast_convolutions")
    assert_same(first_gradients(name, copy.deepcopy(start(name))), literal(name))


@pytest.mark.parametrize(("name", "views"), [("unetr", "two"), ("unetrpp", "one")])
def test_fast_convolutions(name: str, views: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch, "fast_attention")
    found = first_gradients(name, copy.deepcopy(start(name)), views=views)
    if views == "two":
        expected = literal(name)
    else:  # a single image takes a kernel of its own
        leave_out(monkeypatch, "fast_convolutions")
        expected = first_gradients(name, copy.deepcopy(start(name)), views=views)
    assert_same(found, expected)


@pytest.mark.parametrize("name", two_quick())
def test_checkpointed_taps(name: str) -> None:
    network = copy.deepcopy(start(name))
    buffers = {key: value.clone() for key, value in network.named_buffers()}
    assert_same(first_gradients(name, network, use_checkpoint=True), literal(name))
    # the segmentation's own pass counts in running statistics, once
    counts = {k: v for k, v in network.named_buffers() if k.endswith("num_batches_tracked")}
    assert all(int(value) == int(buffers[key]) + 1 for key, value in counts.items())


@pytest.mark.parametrize("name", ["swinunetr", "unetrpp"])
def test_channels_last(name: str) -> None:
    network = prepare_network(copy.deepcopy(start(name)), "", channels_last=True)
    assert_same(first_gradients(name, network), literal(name))


def test_checkpointed_taps_keep_less() -> None:
    """What the graph of a Swin's tap pass holds for the backward pass."""
    row = backbones()["swinunetr"]
    x = torch.randn(1, 4, *ROI)

    def kept(use_checkpoint: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tap = Tap(row["tap"], row["tap_layer_norm"], use_checkpoint)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            feature = tap(start("swinunetr"), x)
        del feature
        return sum(sizes.values())

    assert kept(True) < kept(False) / 2


def test_the_teacher_follows_all_parameters_in_one_call() -> None:
    teacher, student = nn.Linear(5, 4), nn.Linear(5, 4)
    expected = [
        0.9 * t + 0.1 * s
        for t, s in zip(*map(list, (teacher.parameters(), student.parameters())), strict=True)
    ]
    ema_update(teacher, student.double(), 0.9)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value.detach())
