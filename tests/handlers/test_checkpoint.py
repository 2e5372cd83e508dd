"""Checkpoints: what is in the files, which model is kept, and a resumed run bit for bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandScaleIntensityd
from torch import nn

from mod_components import files
from mod_components.errors import CheckpointError, DiskError, SettingsError
from mod_components.handlers import checkpoint as checkpoint_module
from mod_components.handlers.checkpoint import Checkpoint
from mod_components.handlers.earlier import PREVIOUS
from mod_components.handlers.seeding import Reseed
from mod_components.mod import Attach, parameter_groups, state_objects
from tests.toys import ToyNetwork, toy_components, toy_data

EPOCHS = 4


class KilledError(RuntimeError):
    """The process died."""


class KillAt:
    """Ends the run in the middle of an epoch."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self)

    def __call__(self, _engine: Any) -> None:
        raise KilledError


class Scripted(Metric):
    """A key metric whose values are known beforehand."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        super().__init__(output_transform=lambda _: (0, 0))

    def reset(self) -> None:
        pass

    def update(self, output: Any) -> None:
        pass

    def compute(self) -> float:
        return self.values.pop(0)


class Snapshots:
    """Keeps the network's first weight after each epoch."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        state = self.network.state_dict()
        self.weights[engine.state.epoch] = {name: t.clone() for name, t in state.items()}


class Run:
    """Everything of one training run, made anew as a new process would make it."""

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool | str = False,
        init: int = 0,
        width: int = 8,
        epochs: int = EPOCHS,
        workers: int = 0,
        use_mod: bool = True,
        metrics: Sequence[float] | None = None,
        interval: int = 1,
        batch: int = 2,
        handlers: Sequence[Any] = (),
        parts: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        torch.manual_seed(init)
        self.network = ToyNetwork(width=width, dropout=0.3, batch_norm=True)
        self.mod = toy_components(self.network, **(parts or {})) if use_mod else {}
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, self.mod, 0.05), lr=1e-2)
        self.scheduler = WarmupCosineSchedule(
            self.optimizer, warmup_steps=2, t_total=EPOCHS, warmup_multiplier=0.5
        )
        transform = Compose(
            [
                RandScaleIntensityd("image", 0.1, prob=1.0),
                RandGaussianNoised("image", prob=0.5),
                RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
            ]
        )
        dataset = Dataset(toy_data(4), transform)
        self.evaluator = None
        validation = []
        if metrics is not None:
            self.evaluator = SupervisedEvaluator(
                device="cpu",
                val_data_loader=DataLoader(Dataset(toy_data(1)), batch_size=1),
                network=self.network,
                key_val_metric={"val_mean_dice": Scripted(metrics)},
                decollate=False,
            )
            validation = [ValidationHandler(interval, self.evaluator)]
        self.snapshots = Snapshots(self.network)
        self.checkpoint = Checkpoint(
            folder,
            self.network,
            state_objects(self.mod, optimizer=self.optimizer, scheduler=self.scheduler),
            evaluator=self.evaluator,
            resume=resume,
            settings={"width": width, **(settings or {})},
            **more,
        )
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=DataLoader(
                dataset, batch_size=batch, shuffle=True, num_workers=workers
            ),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=nn.BCEWithLogitsLoss(),
            decollate=False,
            optim_set_to_none=True,
            train_handlers=[
                Attach(self.mod),
                Reseed(42, dataset),
                LrScheduleHandler(self.scheduler, print_lr=False),
                *validation,
                self.snapshots,
                self.checkpoint,
                *handlers,
            ],
        )

    def run(self) -> Run:
        self.trainer.run()
        return self

    def everything(self) -> dict[str, torch.Tensor]:
        """All tensors that training changes, by name."""
        found: dict[str, torch.Tensor] = {}

        def walk(prefix: str, item: Any) -> None:
            if isinstance(item, torch.Tensor):
                found[prefix] = item
            elif isinstance(item, Mapping):
                for key, value in item.items():
                    walk(f"{prefix}.{key}", value)
            elif isinstance(item, list | tuple):
                for index, value in enumerate(item):
                    walk(f"{prefix}.{index}", value)
            elif isinstance(item, int | float):
                found[prefix] = torch.tensor(item, dtype=torch.float64)

        walk("network", self.network.state_dict())
        for name, thing in self.checkpoint.objects.items():
            walk(name, thing.state_dict())
        return found


def test_model_is_flat_and_fits_the_plain_network(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=1).run()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = run.network.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    plain = ToyNetwork(batch_norm=True)
    plain.load_state_dict(weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "model.pt", "training.json"]


def test_last_holds_everything_and_loads_with_weights_only(tmp_path: Path) -> None:
    Run(tmp_path, epochs=2).run()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    parts = {"mod.views", "mod.teacher", "mod.tokenizer", "mod.predictor"}
    counters = {"scaler", "epoch", "iteration", "best_metric", "best_metric_epoch", "launch"}
    assert set(last) == {"network", "optimizer", "scheduler"} | parts | counters
    assert (last["epoch"], last["iteration"]) == (2, 4)
    assert "fill" in last["mod.views"]
    assert "token_centre.value" in last["mod.tokenizer"]
    assert any(name.startswith("copies.encoder") for name in last["mod.teacher"])


def test_report_tells_settings_versions_and_metrics(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1, metrics=[0.25]).run()
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["settings"] == {"width": 8}
    assert (report["epoch"], report["iteration"]) == (1, 2)
    assert report["metrics"] == {"val_mean_dice": 0.25}
    assert report["versions"]["torch"] == torch.__version__
    assert isinstance(report["command"], list)


def resumed_equals_straight(tmp_path: Path, **more: Any) -> None:
    straight = Run(tmp_path / "straight", **more).run()
    with pytest.raises(KilledError):
        Run(tmp_path / "cut", handlers=[KillAt(5)], **more).run()  # in the third epoch
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["epoch"] == 2
    resumed = Run(tmp_path / "cut", resume="true", init=99, **more)
    before = resumed.network.state_dict()["stem.0.weight"].clone()
    resumed.run()
    assert sorted(resumed.snapshots.weights) == [3, 4]
    expected, found = straight.everything(), resumed.everything()
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []
    assert not torch.equal(found["network.stem.0.weight"], before)
    for name in ("mod.tokenizer.token_centre.value", "mod.views.fill", "mod.predictor.position"):
        assert found[name].abs().sum() > 0
    assert resumed.mod["teacher"].steps == 8  # type: ignore[union-attr]


def test_a_resumed_run_equals_one_never_stopped(tmp_path: Path) -> None:
    resumed_equals_straight(tmp_path, workers=0)


def test_a_resumed_run_equals_one_never_stopped_with_workers(tmp_path: Path) -> None:
    resumed_equals_straight(tmp_path, workers=2)


@pytest.mark.parametrize("every", [2, 3])
def test_a_run_with_mod_in_some_steps_resumes_too(tmp_path: Path, every: int) -> None:
    """Its first step after the resumption may be one without MOD, whose parameters then rest."""
    resumed_equals_straight(tmp_path, parts={"views": {"every": every}})


def test_the_resumption_test_can_fail(tmp_path: Path) -> None:
    """Another data order or dropout would be seen: runs of two seeds differ."""
    runs = []
    for seed in (1, 2):
        run = Run(tmp_path / str(seed), epochs=1)
        run.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda _, seed=seed: torch.manual_seed(seed)
        )
        runs.append(run.run().network.state_dict()["stem.0.weight"])
    assert not torch.equal(*runs)


def test_nothing_to_resume_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--resume true, but .*last\.pt does not exist"):
        Run(tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    run = Run(tmp_path / "file" / "models")
    with pytest.raises(DiskError, match=r"file/models can't be written \(.*--ckpt_dir"):
        run.run()
    assert run.trainer.state.iteration == 0
    Run(tmp_path / "models", epochs=0)  # a trainer that is built alone leaves nothing behind
    assert not (tmp_path / "models").exists()


def test_a_finished_run_has_nothing_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, epochs=2).run()
    with caplog.at_level(logging.INFO, logger="mod_components.checkpoint"):
        again = Run(tmp_path, epochs=2, resume=True, init=9).run()
    assert "nothing left to train: epoch 2 of 2" in caplog.text
    assert again.snapshots.weights == {}
    a, b = run.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_width_is_told_and_nothing_is_loaded(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    other = Run(tmp_path, resume=True, width=4)
    before = other.network.state_dict()["stem.0.weight"].clone()
    message = r"does not fit ToyNetwork.*stem\.0\.weight: \(8, 4, 4, 4, 4\) in the file, \(4, 4"
    with pytest.raises(CheckpointError, match=message):
        other.run()
    assert torch.equal(other.network.state_dict()["stem.0.weight"], before)


@pytest.mark.parametrize(
    "parts", [{"use_mod": False}, {"parts": {"use_predictor": False}}], ids=["baseline", "ablation"]
)
def test_other_components_are_told(tmp_path: Path, parts: dict[str, Any]) -> None:
    Run(tmp_path, epochs=1).run()
    with pytest.raises(CheckpointError, match=r"of other components.*use_mod"):
        Run(tmp_path, resume=True, **parts).run()


def test_other_heads_are_told(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    parts = {"tokenizer": {"prototypes": 20}}
    with pytest.raises(
        CheckpointError, match=r"(?s)its mod\.teacher does not fit this run.*training\.json"
    ):
        Run(tmp_path, resume=True, parts=parts).run()


def test_the_best_model_by_the_evaluators_metric_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, metrics=[0.2, 0.7, 0.5, 0.6]).run()
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(model[name], t) for name, t in run.snapshots.weights[2].items())
    assert not torch.equal(model["stem.0.weight"], run.snapshots.weights[4]["stem.0.weight"])
    report = json.loads((tmp_path / "training.json").read_text())
    assert (report["epoch"], report["metrics"]["val_mean_dice"]) == (2, 0.7)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["best_metric_epoch"] == 2
    assert last["best_metric"] == pytest.approx(0.7)
    assert last["epoch"] == 4


def test_the_best_so_far_survives_a_resumption(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        Run(tmp_path, metrics=[0.2, 0.7], handlers=[KillAt(5)]).run()
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    Run(tmp_path, metrics=[0.5, 0.6], resume=True).run()
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(model[name], kept[name]) for name in kept)


def test_epochs_without_validation_do_not_replace_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path, metrics=[0.4, 0.3], interval=2).run()
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(model[name], t) for name, t in run.snapshots.weights[2].items())


def test_there_is_a_model_even_if_validation_never_ran(tmp_path: Path) -> None:
    run = Run(tmp_path, metrics=[], interval=100).run()
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(model[name], t) for name, t in run.snapshots.weights[4].items())


def test_an_earlier_runs_model_is_not_taken_for_this_runs(tmp_path: Path) -> None:
    """A run that never validated, cut and resumed in the folder of another one."""
    Run(tmp_path, epochs=1).run()
    with pytest.raises(KilledError):
        Run(tmp_path, init=5, metrics=[], interval=100, handlers=[KillAt(5)]).run()
    resumed = Run(tmp_path, metrics=[], interval=100, resume=True).run()
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(model["stem.0.weight"], resumed.snapshots.weights[4]["stem.0.weight"])


def test_previous_keeps_the_earlier_runs_files(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    names = ("model.pt", "last.pt", "training.json")
    old = {name: (tmp_path / name).read_bytes() for name in names}
    Run(tmp_path, epochs=2, init=7).run()
    for name in names:
        assert (tmp_path / "previous" / name).read_bytes() == old[name], name
        assert (tmp_path / name).read_bytes() != old[name], name
    Run(tmp_path, epochs=4, resume=True).run()  # goes on with its own files: nothing to keep
    assert (tmp_path / "previous" / "last.pt").read_bytes() == old["last.pt"]


class KillBeforeStep(KillAt):
    """Ends the run before a step."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=self.iteration), self)


def test_a_run_that_makes_no_step_moves_nothing(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    with pytest.raises(KilledError):
        Run(tmp_path, handlers=[KillBeforeStep(1)]).run()
    assert not (tmp_path / "previous").exists()
    assert (tmp_path / "model.pt").is_file()


def test_until_a_run_saves_the_earlier_model_stays(tmp_path: Path) -> None:
    """A server that uses it never finds none; and the run that was cut resumes from nothing.

    With the list of the cases that trained it: an evaluation would judge it on them otherwise.
    """
    Run(tmp_path, epochs=1).run()
    (tmp_path / "datalist.json").write_text("the earlier run's")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for seed in (1, 2):  # cut twice: nothing of the first run is lost
        with pytest.raises(KilledError):
            Run(tmp_path, init=seed, handlers=[KillAt(2)]).run()
        assert {path.name for path in tmp_path.iterdir()} == {
            *("model.pt", "training.json", "datalist.json"),
            PREVIOUS,
        }
        assert all((tmp_path / PREVIOUS / name).read_bytes() == old[name] for name in old)
    assert (tmp_path / "model.pt").read_bytes() == old["model.pt"]
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        Run(tmp_path, resume=True).run()
    Run(tmp_path, epochs=1, init=3).run()
    assert all((tmp_path / PREVIOUS / name).read_bytes() == old[name] for name in old)
    assert (tmp_path / "model.pt").read_bytes() != old["model.pt"]


def test_what_the_new_run_does_not_write_goes_too(tmp_path: Path) -> None:
    """Every run's set is whole in ``previous/``, averaged weights of the run itself stay."""
    Run(tmp_path, epochs=1).run()
    names = ("model_ema.pt", "postprocessing.json", "datalist.json")
    for name in names:
        (tmp_path / name).write_text(name)

    class Average:
        """Writes averaged weights before the checkpoint is written, as MOD's handler does."""

        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

        def __call__(self, engine: Any) -> None:
            (tmp_path / "model_ema.pt").write_text("of the new run")

    Run(tmp_path, epochs=1, init=3, handlers=[Average()]).run()
    for name in names:
        assert (tmp_path / PREVIOUS / name).read_text() == name
    assert not (tmp_path / "postprocessing.json").exists()
    assert not (tmp_path / "datalist.json").exists()
    assert (tmp_path / "model_ema.pt").read_text() == "of the new run"
    second = (tmp_path / "model.pt").read_bytes()
    Run(tmp_path, epochs=1, init=4).run()
    assert (tmp_path / PREVIOUS / "model.pt").read_bytes() == second
    assert {path.name for path in (tmp_path / PREVIOUS).iterdir()} == {
        *("model.pt", "training.json", "last.pt", "model_ema.pt")
    }


def test_a_run_cut_in_its_first_save_leaves_no_other_runs_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(tmp_path, epochs=1).run()

    def cut(*_: Any) -> None:
        raise KilledError

    monkeypatch.setattr(checkpoint_module, "save_json", cut)
    with pytest.raises(KilledError):
        Run(tmp_path, epochs=1, init=3).run()
    assert not (tmp_path / "training.json").exists()
    assert (tmp_path / PREVIOUS / "training.json").is_file()


def test_what_pretrained_weights_were_trained_on_is_told(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    first = json.loads((tmp_path / "training.json").read_text())
    first["settings"] |= {"dataset_dir": "BraTS", "training_cases": 7, "epochs": 1}
    (tmp_path / "training.json").write_text(json.dumps(first))
    Run(tmp_path, epochs=1, settings={"pretrained": True, "dataset_dir": "listed"}).run()
    story = json.loads((tmp_path / "training.json").read_text())
    assert story["history"] == [{"dataset_dir": "BraTS", "training_cases": 7, "epochs": 1}]
    Run(tmp_path, epochs=1, settings={"pretrained": True}).run()
    story = json.loads((tmp_path / "training.json").read_text())
    assert [run["dataset_dir"] for run in story["history"]] == ["BraTS", "listed"]


def test_a_resumed_run_keeps_what_its_weights_began_with(tmp_path: Path) -> None:
    """``init_from`` has no effect any more, so that few give it again."""
    Run(tmp_path / "a", epochs=1, settings={"dataset_dir": "BraTS"}).run()
    start = str(tmp_path / "a" / "model.pt")
    Run(tmp_path / "b", epochs=1, settings={"pretrained": True}, init_from=start).run()
    story = json.loads((tmp_path / "b" / "training.json").read_text())["history"]
    assert [run["dataset_dir"] for run in story] == ["BraTS"]
    (tmp_path / "a" / "model.pt").unlink()
    for more in ({}, {"init_from": start}):
        Run(tmp_path / "b", epochs=2, resume=True, settings={"pretrained": False}, **more).run()
        report = json.loads((tmp_path / "b" / "training.json").read_text())
        assert report["history"] == story
        assert report["settings"]["pretrained"] is True


def test_weights_to_begin_with_are_not_moved_or_removed(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    average = tmp_path / "model_ema.pt"
    average.write_bytes((tmp_path / "model.pt").read_bytes())
    with pytest.raises(KilledError):
        Run(tmp_path, init_from=str(average), handlers=[KillAt(2)]).run()
    assert average.is_file(), "the same command begins with it again"
    assert (tmp_path / PREVIOUS / "model_ema.pt").is_file()
    for name in ("model.pt", "model_ema.pt"):
        with pytest.raises(CheckpointError, match=r"previous, where this run puts .* copy it to"):
            Run(tmp_path, init_from=str(tmp_path / PREVIOUS / name))


def test_a_failure_while_saving_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def fail(content: Any, file: Any) -> None:
        calls.append(None)
        if len(calls) == 4:  # last.pt of the second epoch
            file.write(b"half")
            raise OSError("no space left on device")
        save(content, file)

    monkeypatch.setattr(files.torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        Run(tmp_path / "cut").run()
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["epoch"] == 1
    resumed = Run(tmp_path / "cut", resume=True, init=3).run().everything()
    straight = Run(tmp_path / "straight").run().everything()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_with_other_steps_an_epoch_is_resumed_by_epochs(
    tmp_path: Path, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a batch that did not fit into memory: epochs are made, and schedules end at 0."""
    Run(tmp_path, epochs=2).run()  # 2 epochs of 2 steps
    own = Run(tmp_path, resume=True, batch=batch).run()
    length = 4 // batch
    assert f"an epoch has {length} steps now and had 2" in caplog.text
    assert own.trainer.state.epoch == EPOCHS
    assert own.trainer.state.iteration == EPOCHS * length
    assert sorted(own.snapshots.weights) == [3, 4]
    assert own.mod["teacher"].steps == own.mod["teacher"].total_steps == EPOCHS * length


def test_scaler_state_is_kept(tmp_path: Path) -> None:
    """A scaler that lowered its scale goes on with it."""

    class Scaler:
        def __init__(self, scale: float) -> None:
            self.value = scale

        def scale(self, loss: torch.Tensor) -> torch.Tensor:
            return loss

        def step(self, optimizer: torch.optim.Optimizer) -> None:
            optimizer.step()

        def update(self) -> None:
            self.value /= 2

        def state_dict(self) -> dict[str, float]:
            return {"scale": self.value}

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.value = state["scale"]

    class Use:
        def __init__(self, scaler: Scaler) -> None:
            self.scaler = scaler

        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.STARTED, self)

        def __call__(self, engine: Any) -> None:
            engine.amp, engine.scaler = True, self.scaler

    first, second = Scaler(1024.0), Scaler(1024.0)
    Run(tmp_path, epochs=1, handlers=[Use(first)]).run()
    assert first.value == 256  # two steps
    run = Run(tmp_path, epochs=2, resume=True)
    run.trainer._event_handlers[Events.STARTED].insert(0, (Use(second), (run.trainer,), {}))
    run.run()
    assert second.value == 64


def states(folder: Path) -> dict[str, int]:
    """The resumable files in a folder, and the epoch that each holds."""
    files = [*folder.glob("epoch_*.pt"), *folder.glob("last.pt")]
    return {
        path.name: torch.load(path, weights_only=True)["epoch"] for path in sorted(files)
    }  # fmt: skip


def test_states_of_the_last_epochs_are_kept_and_older_ones_pruned(tmp_path: Path) -> None:
    Run(tmp_path, keep_last=2, metrics=[0.9, 0.1, 0.1, 0.1]).run()
    assert states(tmp_path) == {"epoch_0003.pt": 3, "epoch_0004.pt": 4, "last.pt": 4}
    # one file under two names: it takes no more room
    assert (tmp_path / "last.pt").samefile(tmp_path / "epoch_0004.pt")
    assert json.loads((tmp_path / "training.json").read_text())["epoch"] == 1  # the best stays
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("keep_last", [0, "0", "all", None])
def test_states_to_keep_are_a_number(tmp_path: Path, keep_last: Any) -> None:
    with pytest.raises(SettingsError, match="keep_last must be a whole number from 1, got"):
        Run(tmp_path, keep_last=keep_last)
    assert Run(tmp_path, keep_last="2").checkpoint.keep_last == 2


OWN = ("epoch_0002_good.pt", "epoch_0010-before-lr.pt", "epoch_2.pt", "epoch_x.pt")


@pytest.mark.parametrize("keep_last", [1, 2])
def test_files_of_the_user_are_left_alone(tmp_path: Path, keep_last: int) -> None:
    kept = tmp_path / PREVIOUS
    kept.mkdir()
    for folder in (tmp_path, kept):
        for name in OWN:
            (folder / name).write_text("mine")
    for seed in range(3):  # each moves the states of the run before, and prunes its own
        Run(tmp_path, epochs=2, init=seed, keep_last=keep_last).run()
    for folder in (tmp_path, kept):
        assert all((folder / name).read_text() == "mine" for name in OWN)
        assert len(list(folder.glob("epoch_*"))) == len(OWN) + (2 if keep_last == 2 else 0)


def test_where_files_have_one_name_only_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(checkpoint_module.os, "link", refuse)
    Run(tmp_path, keep_last=2).run()
    assert states(tmp_path) == {"epoch_0003.pt": 3, "epoch_0004.pt": 4, "last.pt": 4}
    assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "epoch_0004.pt").read_bytes()


@pytest.mark.parametrize("whole_path", [False, True])
def test_an_older_state_can_be_resumed_from(tmp_path: Path, whole_path: bool) -> None:
    straight = Run(tmp_path, keep_last=3).run()
    name = str(tmp_path / "epoch_0002.pt") if whole_path else "epoch_0002.pt"
    again = Run(tmp_path, resume=True, resume_from=name, init=9, keep_last=3)
    for path in (tmp_path / "last.pt", tmp_path / "epoch_0004.pt"):
        path.unlink()  # it reads what it was told to
    again.run()
    assert sorted(again.snapshots.weights) == [3, 4]
    expected, found = straight.everything(), again.everything()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert states(tmp_path) == {f"epoch_000{k}.pt": k for k in (2, 3, 4)} | {"last.pt": 4}


def test_going_back_removes_the_states_that_came_after(tmp_path: Path) -> None:
    Run(tmp_path, keep_last=3).run()
    with pytest.raises(KilledError):
        Run(
            tmp_path, resume=True, resume_from="epoch_0002.pt", keep_last=3, handlers=[KillAt(7)]
        ).run()
    assert states(tmp_path) == {"epoch_0002.pt": 2, "epoch_0003.pt": 3, "last.pt": 3}


def test_going_back_by_default_keeps_the_state_gone_back_to(tmp_path: Path) -> None:
    """And none of the branch that is left, which could be taken for this one's."""
    Run(tmp_path, keep_last=3).run()
    Run(tmp_path, resume=True, resume_from="epoch_0002.pt").run()
    assert states(tmp_path) == {"epoch_0002.pt": 2, "last.pt": 4}


@pytest.mark.parametrize("name", ["epoch_0009.pt", 9])  # a number, as Fire reads one
def test_a_state_that_is_not_there_is_told(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"--resume true, but .* does not exist: train once"):
        Run(tmp_path, resume=True, resume_from=name)
    Run(tmp_path, epochs=3, keep_last=2).run()
    message = rf"{name} does not exist; the states there are epoch_0002\.pt, epoch_0003\.pt, last"
    with pytest.raises(CheckpointError, match=message):
        Run(tmp_path, resume=True, resume_from=name)


@pytest.mark.parametrize("there", [False, True])
def test_a_state_elsewhere_is_refused(tmp_path: Path, there: bool) -> None:
    """The split and the best model that belong to it would not be found."""
    other = tmp_path / "other" / "epoch_0002.pt"
    if there:
        Run(other.parent, epochs=2, keep_last=2).run()
    message = rf"is not in .*/mine, .*--ckpt_dir {other.parent} with --resume_from epoch_0002\.pt"
    with pytest.raises(CheckpointError, match=message):
        Run(tmp_path / "mine", resume=True, resume_from=other)


def test_a_path_to_the_folder_itself_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(tmp_path / "models", epochs=2, keep_last=2).run()
    monkeypatch.chdir(tmp_path / "models")
    for path in ("../models/epoch_0001.pt", "./epoch_0001.pt"):
        run = Run(tmp_path / "models", resume=True, resume_from=path)
        assert run.checkpoint.state_file == tmp_path / "models" / "epoch_0001.pt"


def test_weights_alone_are_no_state(tmp_path: Path) -> None:
    Run(tmp_path, epochs=1).run()
    run = Run(tmp_path, resume=True, resume_from="model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt holds weights alone, not a state to res"):
        run.run()


def test_states_of_an_earlier_run_move_with_its_other_files(tmp_path: Path) -> None:
    Run(tmp_path, epochs=2, keep_last=2).run()
    Run(tmp_path, epochs=1, init=3, keep_last=2).run()
    assert states(tmp_path) == {"epoch_0001.pt": 1, "last.pt": 1}
    earlier = {"epoch_0001.pt": 1, "epoch_0002.pt": 2, "last.pt": 2}
    assert states(tmp_path / PREVIOUS) == earlier
    Run(tmp_path, epochs=1, init=4).run()
    assert states(tmp_path / PREVIOUS) == {"epoch_0001.pt": 1, "last.pt": 1}
