"""The whole of MOD on MONAI's trainer: Eq. 3, ablations, optimizer groups."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.networks.nets import SwinUNETR
from torch import nn

from mod_components.mod import Attach, noted, parameter_groups, state_objects
from tests.toys import ToyNetwork, toy_components, toy_data, toy_trainer


class Log:
    """Keeps each step's losses, and the gradients after the backward pass."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.gradients: dict[str, torch.Tensor | None] = {}
        self.modules: dict[str, nn.Module] = {}

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        self.losses.append({k: v.item() for k, v in engine.state.output.items() if "loss" in k})
        for owner, module in self.modules.items():
            for name, p in module.named_parameters():
                self.gradients[f"{owner}.{name}"] = None if p.grad is None else p.grad.clone()


def run(mod: Any, network: nn.Module, **settings: Any) -> Log:
    log = Log()
    log.modules = {
        "network": network,
        **{k: m for k, m in (mod or {}).items() if m and k != "teacher"},
    }
    toy_trainer(network, mod, handlers=[log], **settings).run()
    return log


def test_total_loss_is_the_sum_of_eq_3_with_ramp_and_weights() -> None:
    network = ToyNetwork()
    mod = toy_components(
        network, weight=0.3, warmup_epochs=1.5, tokenizer={"strength": 2.0},
        predictor={"strength": 0.7},
    )  # fmt: skip
    log = run(mod, network, epochs=2)
    assert len(log.losses) == 4
    for losses, ramp in zip(
        log.losses, (1 / 3, 2 / 3, 1, 1), strict=True
    ):  # 1.5 epochs, 2 steps each
        tokenizer = 2.0 * (1.5 * losses["loss_token"] + 0.5 * losses["loss_class"])
        expected = losses["loss_seg"] + 0.3 * ramp * (tokenizer + 0.7 * losses["loss_recon"])
        assert losses["loss"] == pytest.approx(expected, rel=1e-5)
        assert losses["loss"] > losses["loss_seg"]


def test_published_weights_are_the_defaults() -> None:
    mod = toy_components(ToyNetwork())
    tokenizer, predictor, teacher = mod["tokenizer"], mod["predictor"], mod["teacher"]
    assert (tokenizer.alpha, tokenizer.beta, tokenizer.strength) == (1.5, 0.5, 1.0)
    assert predictor.strength == 1.0
    assert (tokenizer.token_centre.momentum, tokenizer.class_centre.momentum) == (0.9, 0.99)
    assert (tokenizer.student_temperature, tokenizer.teacher_temperatures) == (0.1, (0.04, 0.07))
    assert teacher.momentum == 0.996
    assert mod["views"].mask_ratio == 0.6


def test_segmentation_loss_is_the_plain_one_of_the_clean_image() -> None:
    network = ToyNetwork()
    plain = copy.deepcopy(network)
    data = toy_data(2)
    log = run(toy_components(network), network, data=data)
    image, label = (torch.stack([case[key] for case in data]) for key in ("image", "label"))
    expected = nn.functional.binary_cross_entropy_with_logits(plain(image), label)
    assert log.losses[0]["loss_seg"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("mod", [None, {}, {"views": None, "tokenizer": None}])
def test_without_components_it_is_the_plain_training_bit_for_bit(mod: Any) -> None:
    weights = []
    for attach in (False, True):
        torch.manual_seed(3)
        network = ToyNetwork(dropout=0.3)
        log = run(mod, network, data=toy_data(6), attach=attach)  # 3 steps
        assert len(log.losses) == 3
        assert set(log.losses[0]) == ({"loss", "loss_seg"} if attach else {"loss"})
        if attach:
            assert all(entry["loss"] == entry["loss_seg"] for entry in log.losses)
        weights.append(network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_with_all_components_every_parameter_gets_a_finite_gradient() -> None:
    network = ToyNetwork()
    mod = toy_components(network, views={"mask_cell": 4})
    log = run(mod, network, data=toy_data(2))
    assert any(name.startswith("tokenizer.class_head") for name in log.gradients)
    assert "views.fill" in log.gradients
    assert "predictor.position" in log.gradients
    for name, gradient in log.gradients.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().sum() > 0, name


def test_mod_changes_the_encoders_gradient_and_not_the_decoders() -> None:
    torch.manual_seed(1)
    network = ToyNetwork()
    plain = copy.deepcopy(network)
    with_mod = run(toy_components(network), network, data=toy_data(2)).gradients
    without = run(None, plain, data=toy_data(2)).gradients
    for name in ("network.decoder.weight", "network.decoder.bias"):
        torch.testing.assert_close(with_mod[name], without[name], rtol=0, atol=0)
    a, b = with_mod["network.stem.0.weight"], without["network.stem.0.weight"]
    assert (a - b).norm() > 0.1 * b.norm()


@pytest.mark.parametrize(
    ("parts", "terms"),
    [
        ({"use_tokenizer": False}, {"loss_recon"}),
        ({"use_predictor": False}, {"loss_token", "loss_class"}),
        ({}, {"loss_recon", "loss_token", "loss_class"}),
    ],
)
def test_components_come_off_one_by_one(parts: dict[str, bool], terms: set[str]) -> None:
    network = ToyNetwork()
    before = copy.deepcopy(network.state_dict())
    mod = toy_components(network, **parts)
    assert ("teacher" in mod) == ("loss_token" in terms)
    log = run(mod, network)
    assert set(log.losses[-1]) == {"loss", "loss_seg"} | terms
    assert all(torch.isfinite(torch.tensor(v)) for v in log.losses[-1].values())
    assert not torch.equal(network.state_dict()["stem.0.weight"], before["stem.0.weight"])


def test_attached_losses_do_not_add_up_over_steps_or_runs() -> None:
    """A double handler would add the reconstruction loss twice in a second run."""
    network = ToyNetwork()
    mod = toy_components(network, warmup_epochs=0, use_tokenizer=False)
    log = Log()
    trainer = toy_trainer(
        network, mod, data=toy_data(1), handlers=[log],
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
    )  # fmt: skip
    trainer.run()
    trainer.state.max_epochs = 2
    trainer.run()
    assert len(log.losses) == 2
    assert log.losses[0]["loss_seg"] == log.losses[1]["loss_seg"]
    for losses in log.losses:
        expected = losses["loss_seg"] + losses["loss_recon"]
        assert losses["loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.state.mod is None


def test_metatensors_and_swinunetr() -> None:
    """MONAI's own network and images with metadata, as a bundle has them; 32³, stride 16."""
    torch.manual_seed(0)
    network = SwinUNETR(in_channels=4, out_channels=3, feature_size=12, norm_name="batch")
    from mod_components.mod import DensePredictor, EMATeacher, MaskedViews, OnlineTokenizer

    views = MaskedViews(network, "swinViT.layers3.0", (32,) * 3, layer_norm=True, mask_cell=8)
    teacher = EMATeacher(views)
    mod = {
        "views": views,
        "teacher": teacher,
        "tokenizer": OnlineTokenizer(teacher, prototypes=8, class_prototypes=4, hidden=8),
        "predictor": DensePredictor(views),
    }
    data = [
        {
            "case": str(i),
            "image": MetaTensor(torch.randn(4, 32, 32, 32)),
            "label": MetaTensor(torch.ones(3, 32, 32, 32)),
        }
        for i in range(2)
    ]
    types: list[type] = []
    trainer = toy_trainer(network, mod, data=data)
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED,
        lambda e: types.extend(type(t) for t in vars(e.state.mod).values()),
    )
    log = Log()
    log.modules = {"network": network}
    log.attach(trainer)
    trainer.run()
    assert set(types) - {type(None)} == {torch.Tensor}
    assert set(log.losses[0]) == {"loss", "loss_seg", "loss_token", "loss_class", "loss_recon"}
    assert all(torch.isfinite(torch.tensor(v)) for v in log.losses[0].values())
    assert all(g is not None and torch.isfinite(g).all() for g in log.gradients.values())
    assert teacher.steps == 1
    counts = {int(b) for n, b in network.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {1}  # masked passes leave no trace


def test_unknown_components_are_told() -> None:
    with pytest.raises(ValueError, match=r"\['tokeniser'\].*'tokenizer'"):
        Attach({"tokeniser": ToyNetwork()})  # type: ignore[dict-item]


def test_order_of_the_mapping_does_not_matter() -> None:
    values = []
    for flip in (False, True):
        torch.manual_seed(2)
        network = ToyNetwork()
        mod = toy_components(network)
        if flip:
            mod = dict(reversed(mod.items()))
        torch.manual_seed(5)
        log = Log()
        toy_trainer(
            network, None, attach=False, handlers=[Attach(mod), log], data=toy_data(2)
        ).run()
        values.append(log.losses)
    assert values[0] == values[1]


class Everything(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 1)
        self.norm = nn.LayerNorm(4)
        self.group = nn.GroupNorm(1, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5, 2))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 4, 4))
        self.position = nn.Parameter(torch.zeros(1, 4, 4))
        self.positional_weight = nn.Parameter(torch.zeros(2, 2))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.tied = self.conv


def test_parameter_groups_by_kind() -> None:
    module = Everything()
    decayed, undecayed = parameter_groups(module, None, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert undecayed["weight_decay"] == 0.0
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "positional_weight",
    }  # fmt: skip
    assert {names[id(p)] for p in undecayed["params"]} == {
        "conv.bias", "norm.weight", "norm.bias", "group.weight", "group.bias",
        "attention.in_proj_bias", "attention.out_proj.bias", "relative_position_bias_table",
        "position_embeddings", "position",
    }  # fmt: skip


def test_parameter_groups_hold_every_trainable_parameter_once() -> None:
    network = ToyNetwork()
    network.decoder.bias.requires_grad_(False)
    mod = toy_components(network)
    groups = parameter_groups(network, mod, 0.05)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    modules = [network, *(m for m in mod.values())]
    assert set(ids) == {id(p) for m in modules for p in m.parameters() if p.requires_grad}
    undecayed = {id(p) for p in groups[1]["params"]}
    assert id(mod["views"].fill) in undecayed
    assert id(mod["predictor"].position) in undecayed
    assert id(mod["tokenizer"].token_head.prototypes) not in undecayed
    zero = toy_components(network, views={"fill": "zero"})
    ids = [id(p) for group in parameter_groups(network, zero, 0.05) for p in group["params"]]
    assert id(zero["views"].fill) not in ids


def test_state_objects_are_flat_and_leave_out_what_is_off() -> None:
    network = ToyNetwork()
    mod = {**toy_components(network, use_predictor=False), "predictor": None}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    objects = state_objects(mod, optimizer=optimizer)
    assert set(objects) == {"optimizer", "mod.views", "mod.teacher", "mod.tokenizer"}
    assert objects["optimizer"] is optimizer
    assert set(state_objects(None, network=network)) == {"network"}


def test_what_components_were_built_with_is_noted_with_their_defaults() -> None:
    network = ToyNetwork()
    mod = toy_components(network, teacher={"momentum": 0.95}, tokenizer={"beta": 0.25})
    found = json.loads(json.dumps(noted({**mod, "average": None})))
    assert set(found) == {"views", "teacher", "tokenizer", "predictor"}
    assert found["teacher"] == {"momentum": 0.95}
    assert found["tokenizer"]["beta"] == 0.25
    assert found["tokenizer"]["alpha"] == 1.5
    assert found["tokenizer"]["teacher_temperatures"] == [0.04, 0.07]
    assert found["tokenizer"]["class_momentum"] == pytest.approx(0.9)
    assert found["predictor"]["strength"] == 1.0
    assert noted(None) == {}


def test_handlers_are_attached_once() -> None:
    network = ToyNetwork()
    mod = toy_components(network)
    trainer = toy_trainer(network, mod)

    def counts() -> list[int]:
        events = (*IterationEvents, Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED)
        return [len(trainer._event_handlers[event]) for event in events]

    before = counts()
    trainer.run()
    trainer.state.max_epochs = 3
    trainer.run()
    assert counts() == before
