"""Steps that are not finite: named, skipped without a trace, and the end of too many."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from monai.data import MetaTensor, list_data_collate
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from mod_components.errors import SettingsError, TrainingError
from mod_components.handlers import Guard
from mod_components.handlers.guard import _cases
from mod_components.mod import WeightAverage
from mod_components.networks.unetr_pp import UNETRPP
from tests.backbones import build_network
from tests.handlers.test_checkpoint import KillAt, KilledError, Run
from tests.toys import ToyNetwork, toy_components, toy_data, toy_trainer

BAD = 3  # the step that goes wrong: the first of the second epoch


class SpoilImage:
    """Puts a NaN into a voxel of the first case of a step's batch."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Any) -> None:
        if engine.state.iteration in self.steps:
            engine.state.batch["image"][0, 0, 8, 8, 8] = math.nan


def now(trainer: Any) -> bool:
    return bool(trainer.state.iteration == BAD)


def spoil_segmentation(trainer: Any, mod: dict[str, Any], network: nn.Module) -> None:
    loss = trainer.loss_function
    trainer.loss_function = lambda *pair: loss(*pair) * (math.inf if now(trainer) else 1)


def spoil_token(trainer: Any, mod: dict[str, Any], network: nn.Module) -> None:
    losses = mod["tokenizer"].losses

    def spoiled(*arguments: Any) -> tuple[Tensor, Tensor]:
        efm, cls = losses(*arguments)
        return efm * (math.nan if now(trainer) else 1), cls

    mod["tokenizer"].losses = spoiled


def spoil_reconstruction(trainer: Any, mod: dict[str, Any], network: nn.Module) -> None:
    loss = mod["predictor"].loss
    mod["predictor"].loss = lambda step: loss(step) * (math.nan if now(trainer) else 1)


def spoil_gradient(trainer: Any, mod: dict[str, Any], network: nn.Module) -> None:
    network.encoder[0].bias.register_hook(lambda g: g * math.inf if now(trainer) else g)


def spoil_everything(trainer: Any, mod: dict[str, Any], network: nn.Module) -> None:
    SpoilImage(BAD).attach(trainer)


class Everything:
    """What a step may change, as it was before and after the bad one and at the end."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts
        self.seen: dict[str, dict[str, Tensor]] = {}

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=BAD), self.look, "before")
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=BAD), self.look, "after")
        engine.add_event_handler(Events.COMPLETED, self.look, "end")

    def look(self, engine: Any, when: str) -> None:
        found = {
            f"{part}.{name}": value.clone()
            for part, module in self.parts.items()
            for name, value in module.state_dict().items()
            if isinstance(value, Tensor) and not name.startswith(("token_centre", "class_"))
        }
        found["teacher.steps"] = torch.tensor(self.parts["teacher"].steps)
        for key, state in engine.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{key}.{name}": value.clone() for name, value in state.items()}
        self.seen[when] = found


def guard_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.name == "mod_components.guard"]


@pytest.mark.parametrize(
    ("spoil", "terms"),
    [
        (spoil_segmentation, "loss_seg"),
        (spoil_token, "loss_token"),
        (spoil_reconstruction, "loss_recon"),
        (spoil_gradient, "gradients"),
        (spoil_everything, "loss_class and loss_recon and loss_seg and loss_token"),
    ],
)
def test_a_bad_step_is_named_and_leaves_no_trace(
    spoil: Callable[..., None], terms: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = ToyNetwork(batch_norm=True)
    mod: dict[str, Any] = toy_components(network, warmup_epochs=0)
    mod["average"] = WeightAverage(network, tmp_path)
    everything = Everything({"network": network, **mod})
    trainer = toy_trainer(network, mod, epochs=3, handlers=[Guard(), everything])
    spoil(trainer, mod, network)
    figures: list[dict[str, float]] = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: figures.append(dict(engine.state.metrics))
    )
    trainer.run()

    expected = f"epoch 2, step {BAD}: {terms} not finite (cases: case_0; case_1); skipped, 1 of"
    lines = guard_lines(caplog)
    assert len(lines) == 1
    assert lines[0].startswith(expected)
    before, after, end = (everything.seen[when] for when in ("before", "after", "end"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    moved = [name for name in before if not torch.equal(after[name], end[name])]
    assert {name.split(".")[0] for name in moved} >= {
        *("network", "views", "teacher", "tokenizer", "predictor", "average", "optimizer")
    }
    assert all(value.isfinite().all() for value in end.values())
    for module in mod.values():  # centres, memory and all
        assert all(value.isfinite().all() for value in module.buffers())
    assert [epoch["skipped_steps"] for epoch in figures] == [0, 1, 0]
    assert all(math.isfinite(value) for epoch in figures for value in epoch.values())
    assert end["teacher.steps"] == 5


def test_running_statistics_of_unetrpp_survive(caplog: pytest.LogCaptureFixture) -> None:
    network = build_network("unetrpp", (64, 64, 64))
    assert isinstance(network, UNETRPP)
    image, label = torch.randn(4, 64, 64, 64), torch.zeros(3, 64, 64, 64)
    data = [{"case": "a", "image": image, "label": label}]
    trainer = toy_trainer(
        network, {}, data=data, batch_size=1, handlers=[Guard(), SpoilImage(1)]
    )  # fmt: skip
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert any("running_var" in name for name in before)
    trainer.run()
    assert "loss_seg not finite (cases: a)" in caplog.text
    after = network.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_too_many_end_the_run_and_good_checkpoints_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path, epochs=2, handlers=[Guard()]).run()
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = Run(tmp_path, resume=True, handlers=[Guard(max_bad_steps=1), SpoilImage(5, 6)])
    with pytest.raises(TrainingError) as caught:
        run.run()
    message = str(caught.value)
    for part in (
        "epoch 3, step 6: loss_",
        "bad step 2 of this run, and max_bad_steps allows 1",
        "The first was epoch 3, step 5: loss_",
        "case_",
        "Lower mod_weight, learning_rate",
        "--clip_norm 1",
        "--resume true",
    ):
        assert part in message
    assert "\n" not in message
    assert len(guard_lines(caplog)) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good


def test_none_may_be_skipped_if_so_set() -> None:
    trainer = toy_trainer(
        ToyNetwork(), {}, handlers=[Guard(max_bad_steps=0), SpoilImage(1)]
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: loss_seg not finite") as caught:
        trainer.run()
    assert "The first" not in str(caught.value)
    assert "mod_weight" not in str(caught.value)  # the baseline has none
    assert isinstance(trainer.optimizer, torch.optim.AdamW)


def test_a_run_with_skipped_steps_resumes_bit_for_bit(tmp_path: Path) -> None:
    def more() -> list[Any]:
        return [Guard(), SpoilImage(2, 5)]

    straight = Run(tmp_path / "straight", handlers=more()).run()
    with pytest.raises(KilledError):
        Run(tmp_path / "cut", handlers=[*more(), KillAt(6)]).run()
    resumed = Run(tmp_path / "cut", resume=True, init=9, handlers=more()).run()
    assert sorted(resumed.snapshots.weights) == [3, 4]
    expected, found = straight.everything(), resumed.everything()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert resumed.mod["teacher"].steps == 6  # type: ignore[union-attr]


def test_weights_that_are_lost_are_not_saved(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for part in ("network", "mod.predictor"):
        run = Run(tmp_path, resume=True, epochs=2)
        module = run.network if part == "network" else run.mod["predictor"]
        parameter = next(module.parameters())
        run.trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=4), lambda _, p=parameter: p.data.fill_(math.nan)
        )
        with pytest.raises(TrainingError, match=f"after epoch 2 the weights of {part} are not fin"):
            run.run()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good


class Scale:
    """Gives the trainer a gradient scaler of the CPU."""

    def __init__(self, scale: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        engine.amp, engine.scaler = True, self.scaler


def sgd(network: nn.Module, mod: dict[str, Any]) -> torch.optim.SGD:
    return torch.optim.SGD([p for m in (network, *mod.values()) for p in m.parameters()], lr=1.0)


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("clip", [0, 0.1, 1e6])
def test_gradients_are_clipped_by_the_norm_of_all(clip: float, scale: float | None) -> None:
    torch.manual_seed(0)
    network = ToyNetwork()
    mod: dict[str, Any] = toy_components(network, warmup_epochs=0, use_tokenizer=False)
    parameters = [p for m in (network, *mod.values()) for p in m.parameters()]
    before = [p.detach().clone() for p in parameters]
    trainer = toy_trainer(
        network,
        mod,
        data=toy_data(2),
        optimizer=sgd(network, mod),
        handlers=[Guard(clip_norm=clip), *([] if scale is None else [Scale(scale)])],
    )
    trainer.run()  # one step: with SGD of rate 1 its length is the norm of the gradients
    steps = [(p.detach() - old).double().norm() for p, old in zip(parameters, before, strict=True)]
    length = float(torch.stack(steps).norm())
    norm = trainer.state.metrics["grad_norm"]
    assert norm > 0.1
    assert length == pytest.approx(0.1 if clip == 0.1 else norm, rel=1e-3)
    assert float(torch.stack(steps[:6]).norm()) < length  # MOD's own parameters count


def test_accumulated_gradients_are_clipped_once() -> None:
    lengths = []
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        network = ToyNetwork()
        before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
        trainer = toy_trainer(
            network,
            {},
            batch_size=1,
            optimizer=sgd(network, {}),
            handlers=[Guard(clip_norm=clip)],
            accumulation_steps=4,
        )
        trainer.run()
        after = nn.utils.parameters_to_vector(network.parameters()).detach()
        lengths.append(float((after - before).norm()))
    assert lengths[0] > 0.01
    assert lengths[1] == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("bad", [1, 2, 3, 4])
def test_a_bad_batch_spoils_the_whole_step_that_accumulates_it(
    bad: int, scale: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = ToyNetwork()
    mod: dict[str, Any] = toy_components(network)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    guard = Guard()
    trainer = toy_trainer(
        network,
        mod,
        data=toy_data(4),
        batch_size=1,
        optimizer=sgd(network, mod),
        handlers=[guard, SpoilImage(bad), *([] if scale is None else [Scale(scale)])],
        accumulation_steps=4,
        epochs=2,
    )
    seen: list[Tensor] = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda _: seen.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone()),
    )
    trainer.run()
    assert torch.equal(seen[0], before), "no step"
    assert not torch.equal(seen[1], before)
    assert mod["teacher"].steps == 1
    assert len(guard.bad_steps) == len(guard_lines(caplog)) == 1


@pytest.mark.parametrize("spoil", [spoil_segmentation, spoil_everything])
def test_with_a_scaler_the_scaler_skips(
    spoil: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    network = ToyNetwork(batch_norm=True)
    mod: dict[str, Any] = toy_components(network)
    everything, scale = Everything({"network": network, **mod}), Scale(1024.0)
    guard = Guard(clip_norm=1)
    trainer = toy_trainer(network, mod, epochs=3, handlers=[guard, everything, scale])
    spoil(trainer, mod, network)
    trainer.run()
    before, after = everything.seen["before"], everything.seen["after"]
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert len(guard_lines(caplog)) == 1
    assert scale.scaler.get_scale() == 512
    assert all(value.isfinite().all() for value in everything.seen["end"].values())


def test_an_infinite_loss_with_finite_gradients_is_skipped_with_a_scaler() -> None:
    network = ToyNetwork()
    before = [p.detach().clone() for p in network.parameters()]
    loss = nn.BCEWithLogitsLoss()
    trainer = toy_trainer(
        network,
        {},
        loss_function=lambda *pair: loss(*pair) + math.inf,
        handlers=[Guard(), Scale(1024.0)],
    )
    trainer.run()
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert trainer.state.metrics["skipped_steps"] == 2


@pytest.mark.parametrize(("scale", "counted"), [(1024.0, 0), (1.0, 1)])
def test_a_scale_that_is_too_high_is_the_scalers_own_business(
    scale: float, counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    network = ToyNetwork()
    trainer = toy_trainer(network, {}, epochs=2, handlers=[Guard(), Scale(scale)])
    spoil_gradient(trainer, {}, network)
    trainer.run()
    assert len(guard_lines(caplog)) == counted
    assert all(p.isfinite().all() for p in network.parameters())


def test_a_scaler_that_does_not_scale_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """What MONAI makes on a CPU with ``amp``."""
    network, scale = ToyNetwork(), Scale(1.0)
    scale.scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer = toy_trainer(network, {}, handlers=[Guard(), scale, SpoilImage(2)])
    trainer.run()
    assert len(guard_lines(caplog)) == 1
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_bad_steps": value} for value in (-1, None, "some")),
        *({"clip_norm": value} for value in (-0.5, math.inf, "a", [1])),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(settings))} must be a .*number from 0"):
        Guard(**settings)
    guard = Guard("3", "0.5")  # type: ignore[arg-type]
    assert (guard.max_bad_steps, guard.clip_norm) == (3, 0.5)


def test_a_run_that_ended_within_a_bad_step_can_run_again() -> None:
    class Break:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

        def __call__(self, _engine: Any) -> None:
            if len(spoil.steps) == 1:
                raise KilledError

    spoil = SpoilImage(1)
    trainer = toy_trainer(ToyNetwork(), {}, handlers=[Guard(), spoil, Break()])
    with pytest.raises(KilledError):
        trainer.run()
    spoil.steps = ()
    trainer._internal_run_generator = None  # else Ignite's next run ends at once
    trainer.state.epoch = trainer.state.iteration = 0
    trainer.run()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.state.metrics["skipped_steps"] == 0


def test_cases_are_named_with_the_files_of_their_images() -> None:
    items = [
        {"case": name, "image": MetaTensor(torch.zeros(4, 2, 2, 2), meta={"filename_or_obj": path})}
        for name, path in (("A", "/data/A_t1.nii.gz"), ("B", "/data/B_t1.nii.gz"))
    ]
    batch = list_data_collate(items)
    assert _cases(batch) == ["A, /data/A_t1.nii.gz", "B, /data/B_t1.nii.gz"]
    assert _cases({"case": ["A", "B"]}) == ["A", "B"]
    assert _cases({"image": batch["image"]}) == ["/data/A_t1.nii.gz", "/data/B_t1.nii.gz"]
    assert _cases({"image": torch.zeros(2)}) == []
    assert _cases((torch.zeros(2), torch.zeros(2))) == []


def train_one_of_two(rank: int, folder: str) -> None:
    """Three steps of two processes, of which the second has a NaN in its second step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mod_components.guard").addHandler(handler)
    try:
        network = ToyNetwork(batch_norm=True)
        wrapped = nn.parallel.DistributedDataParallel(network)
        mod: dict[str, Any] = toy_components(wrapped, warmup_epochs=0)
        data = toy_data(6)[rank::2]
        spoil = [SpoilImage(2)] if rank == 1 else []
        trainer = toy_trainer(
            wrapped, mod, data=data, batch_size=1, handlers=[Guard(clip_norm=1), *spoil]
        )
        weights: list[Tensor] = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda _: weights.append(
                nn.utils.parameters_to_vector(
                    [p for m in (network, *mod.values()) for p in m.parameters()]
                ).detach()
            ),
        )
        trainer.run()
        result = {
            "weights": weights,
            "buffers": list(mod["tokenizer"].buffers()),
            "teacher": list(mod["teacher"].buffers()),  # running statistics are each process's own
            "lines": lines,
            "skipped": trainer.state.metrics["skipped_steps"],
            "norm": trainer.state.metrics["grad_norm"],
        }
        torch.save(result, os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch's gloo backend"
)
def test_two_processes_skip_together(tmp_path: Path) -> None:
    mp.spawn(train_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert torch.equal(first["weights"][0], first["weights"][1])
    assert not torch.equal(first["weights"][1], first["weights"][2])
    for one, other in zip(first["buffers"], second["buffers"], strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert all(buffer.isfinite().all() for buffer in (*first["teacher"], *second["teacher"]))
    assert first["skipped"] == second["skipped"] == 1
    assert first["norm"] == pytest.approx(second["norm"])
    assert second["lines"] == []
    (line,) = first["lines"]  # told once, by the first process, of the case of the second
    assert line.startswith("epoch 1, step 2: loss_class and loss_recon and loss_seg and loss_token")
    assert "case_3" in line
    assert "case_2" not in line
