"""Progress bar, log lines and CSV files of a real training, fresh and resumed."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler
from torch import Tensor

from mod_components.handlers import logs
from mod_components.handlers.logs import TrainingLog, ValidationLog, loss_terms
from mod_components.metrics import RegionDice, RegionHD95

STEPS = 3


class Extras:
    """Puts further loss terms and a figure of the epoch where the method's handlers put theirs."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.add_terms)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.add_figures)

    def add_terms(self, engine: Engine) -> None:
        engine.state.output["loss_seg"] = engine.state.output["loss"].detach()
        engine.state.output["loss_token"] = float(engine.state.iteration)
        engine.state.output["loss_weights"] = torch.ones(2, 3)  # no scalar: not a term

    def add_figures(self, engine: Engine) -> None:
        engine.state.metrics["token_entropy"] = torch.tensor(0.25 * engine.state.epoch)
        engine.state.metrics["histogram"] = torch.ones(4)


class Resume:
    """Stands for the checkpoint loader, attached after the log."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self, engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = self.epoch, self.epoch * STEPS


def data() -> DataLoader:
    cases = [
        {"image": torch.rand(3, 4, 4, 4), "label": (torch.rand(3, 4, 4, 4) > 0.5).float()}
        for _ in range(2 * STEPS)
    ]
    return DataLoader(Dataset(cases), batch_size=2)


def make_trainer(
    handlers: list[object], epochs: int, decollate: bool = True, schedule: bool = False
) -> SupervisedTrainer:
    network = torch.nn.Conv3d(3, 3, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    if schedule:
        halve = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        handlers = [LrScheduleHandler(halve, print_lr=False), *handlers]
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=data(),
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.BCEWithLogitsLoss(),
        train_handlers=handlers,
        decollate=decollate,
    )


def make_evaluator(handlers: list[object]) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data(),
        network=torch.nn.Identity(),
        postprocessing=lambda item: {**item, "pred": (item["pred"] > 0.5).float()},
        key_val_metric={"val_mean_dice": RegionDice()},
        additional_metrics={
            "val_dice_tc": RegionDice("TC"),
            "val_dice_wt": RegionDice("WT"),
            "val_dice_et": RegionDice("ET"),
            "val_hd95_wt": RegionHD95("WT"),
        },
        val_handlers=handlers,
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def epochs_of(path: Path) -> list[int]:
    return [int(row["epoch"]) for row in read(path)]


@pytest.mark.parametrize("decollate", [True, False])
def test_an_epoch_gives_a_row_with_means_rate_and_figures(tmp_path: Path, decollate: bool) -> None:
    losses: list[float] = []

    def keep(engine: Engine) -> None:
        losses.append(loss_terms(engine.state.output)["loss"])

    trainer = make_trainer([Extras(), TrainingLog(tmp_path)], 2, decollate, schedule=True)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    rows = read(tmp_path / "train.csv")
    assert list(rows[0]) == [
        *("epoch", "loss", "loss_seg", "loss_token", "lr", "seconds", "token_entropy")
    ]
    for i, row in enumerate(rows):
        mean = sum(losses[i * STEPS : (i + 1) * STEPS]) / STEPS
        assert float(row["loss"]) == pytest.approx(mean, rel=1e-5)
        assert float(row["loss_seg"]) == pytest.approx(mean, rel=1e-5)
        assert float(row["loss_token"]) == i * STEPS + 2
        assert float(row["token_entropy"]) == 0.25 * (i + 1)
        assert float(row["lr"]) == 0.5 ** (i + 1)  # of the epoch, not of the next one
        assert float(row["seconds"]) >= 0
    # the log file is there if the root logger lets lines through
    assert {path.name for path in tmp_path.iterdir()} - {"training.log"} == {"train.csv"}


def test_the_line_of_an_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mod_components.training"):
        make_trainer([Extras(), TrainingLog(tmp_path)], 2).run()
    lines = [r.message for r in caplog.records if r.name == "mod_components.training"]
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2: loss 0.")
    for part in ("loss_token 2", "lr 0.5", " s, ETA 0:00:0"):
        assert part in lines[0]
    assert "token_entropy" not in lines[0]  # figures are for the CSV file


def test_hours_go_beyond_a_day() -> None:
    assert logs._hours(59.6) == "0:01:00"
    assert logs._hours(100 * 3600 + 61) == "100:01:01"


def test_resuming_keeps_the_rows_before_and_drops_those_after(tmp_path: Path) -> None:
    make_trainer([TrainingLog(tmp_path)], 4).run()
    before = read(tmp_path / "train.csv")
    # The loader comes after the log: the log must not decide at STARTED.
    make_trainer([Extras(), TrainingLog(tmp_path), Resume(2)], 3).run()
    after = read(tmp_path / "train.csv")
    assert [row["epoch"] for row in after] == ["1", "2", "3"]
    assert [{k: row[k] for k in before[0]} for row in after[:2]] == before[:2]
    # Columns that the first run did not have come last, and are empty in its rows.
    assert list(after[0])[-3:] == ["loss_seg", "loss_token", "token_entropy"]
    assert [row["loss_token"] for row in after] == ["", "", "8"]


def test_a_fresh_run_replaces_what_an_earlier_one_has_left(tmp_path: Path) -> None:
    for epochs, interval in ((3, 1), (2, 2)):
        validation = ValidationHandler(interval, make_evaluator([ValidationLog(tmp_path)]))
        make_trainer([TrainingLog(tmp_path), validation], epochs).run()
    assert epochs_of(tmp_path / "train.csv") == [1, 2]
    assert epochs_of(tmp_path / "validation.csv") == [2]


def test_a_damaged_line_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("epoch,loss\n1,0.5\nhalf a li\n,\n2,0.4,surplus\n3\n")
    make_trainer([TrainingLog(tmp_path), Resume(3)], 4).run()
    rows = read(tmp_path / "train.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["loss"] for row in rows[:3]] == ["0.5", "0.4", ""]


def test_the_file_is_whole_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer([TrainingLog(tmp_path)], 2).run()
    before = (tmp_path / "train.csv").read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mod_components.files.os.replace", fail)
    log = TrainingLog(tmp_path)
    trainer = make_trainer([log, Resume(2)], 3)
    with pytest.raises(OSError, match="disk full"):
        trainer.run()
    log._close(trainer)  # else its bar speaks up in a later test
    assert (tmp_path / "train.csv").read_text() == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_one_bar_spans_the_whole_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    text = stream()
    monkeypatch.setattr(sys, "stderr", text)
    make_trainer([Extras(), TrainingLog(tmp_path), Resume(2)], 4).run()
    states = re.split(r"[\r\n]+", text.getvalue().strip())
    assert f"{2 * STEPS}/{4 * STEPS}" in states[0]
    assert f"{4 * STEPS}/{4 * STEPS}" in states[-1]
    for part in ("loss=0.", "loss_token=12", "epoch=4/4"):
        assert part in states[-1]
    if not text.isatty():  # a log file: lines of their own, and few
        assert "\r" not in text.getvalue()
        assert len(states) <= 2


def test_the_console_is_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.ERROR)
    logging.root.addHandler(console)
    seen: list[list[logging.Handler]] = []

    def look(engine: Engine) -> None:
        seen.append(list(logging.root.handlers))
        logging.getLogger("somebody").error("above the bar")

    try:
        trainer = make_trainer([TrainingLog(tmp_path)], 1)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
        trainer.run()
        assert console not in seen[0]
        assert seen[0][-1].level == logging.ERROR
        assert console in logging.root.handlers
    finally:
        logging.root.removeHandler(console)
    assert capsys.readouterr().out.count("above the bar") == STEPS


def test_a_failed_run_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    trainer = make_trainer([log], 2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=STEPS + 1), _fail)
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.run()
    assert epochs_of(tmp_path / "train.csv") == [1]
    make_trainer([log, Resume(1)], 2).run()
    assert epochs_of(tmp_path / "train.csv") == [1, 2]


def _fail(engine: Engine) -> None:
    raise RuntimeError("stop here")


def test_other_processes_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.idist, "get_rank", lambda: 1)
    validation = ValidationHandler(1, make_evaluator([ValidationLog(tmp_path)]))
    make_trainer([TrainingLog(tmp_path), validation], 1).run()
    assert list(tmp_path.iterdir()) == []


def test_validation_is_logged_at_the_trainers_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = make_evaluator([ValidationLog(tmp_path)])
    with caplog.at_level(logging.INFO, logger="mod_components.training"):
        make_trainer([TrainingLog(tmp_path), ValidationHandler(2, evaluator)], 4).run()
    rows = read(tmp_path / "validation.csv")
    assert [row["epoch"] for row in rows] == ["2", "4"]
    metrics = evaluator.state.metrics
    assert list(rows[1])[1:] == list(metrics)
    for name, value in metrics.items():
        assert float(rows[1][name]) == pytest.approx(value, rel=1e-5)
    lines = [r.message for r in caplog.records if "validation" in r.message]
    assert len(lines) == 2
    dice = [f"{metrics[f'val_{name}']:.4f}" for name in ("mean_dice", "dice_tc", "dice_wt")]
    start = f"validation at epoch 4: mean Dice {dice[0]} TC {dice[1]} WT {dice[2]} ET "
    assert lines[1].startswith(start)
    assert f"HD95 WT {metrics['val_hd95_wt']:.4f}" in lines[1]


def test_a_resumed_run_repeats_a_validation(tmp_path: Path) -> None:
    def run(epochs: int, *more: object) -> None:
        validation = ValidationHandler(1, make_evaluator([ValidationLog(tmp_path)]))
        make_trainer([TrainingLog(tmp_path), validation, *more], epochs).run()

    run(3)
    before = (tmp_path / "validation.csv").read_text().splitlines()
    run(3, Resume(1))  # epochs 2 and 3 once more
    after = (tmp_path / "validation.csv").read_text().splitlines()
    assert epochs_of(tmp_path / "validation.csv") == [1, 2, 3]
    assert after[:2] == before[:2]


def test_only_numbers_are_figures() -> None:
    figures = {"a": 1, "b": torch.tensor(0.5), "c": torch.ones(2), "d": "fine", "e": None}
    assert logs._scalars(figures) == {"a": 1.0, "b": 0.5}


def test_loss_terms_of_any_output() -> None:
    loss = torch.tensor(0.5, requires_grad=True)
    step: dict[str, object] = {"loss": loss, "loss_seg": 0.25, "loss_map": torch.ones(2), "pred": 1}
    expected = {"loss": 0.5, "loss_seg": 0.25}
    assert loss_terms(step) == expected
    assert loss_terms([step, step]) == expected
    assert loss_terms([]) == {}
    assert loss_terms(None) == {}
    json.dumps(loss_terms(step))  # plain floats


def test_tensorboard_gets_every_term_and_figure(tmp_path: Path) -> None:
    class Writer:
        """Keeps what it is told."""

        def __init__(self) -> None:
            self.tags: dict[str, list[int]] = {}

        def add_scalar(self, tag: str, value: float | Tensor, step: int) -> None:
            assert float(value) == float(value)
            self.tags.setdefault(tag, []).append(step)

        def flush(self) -> None:
            pass

    writer = Writer()
    board = TensorBoardStatsHandler(
        writer, output_transform=loss_terms, state_attributes=["learning_rate"]
    )
    make_trainer([Extras(), TrainingLog(tmp_path), board], 2).run()
    steps = list(range(1, 2 * STEPS + 1))
    assert writer.tags["loss"] == writer.tags["loss_token"] == steps
    assert writer.tags["token_entropy"] == writer.tags["learning_rate"] == [1, 2]
