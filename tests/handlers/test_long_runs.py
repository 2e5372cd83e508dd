"""A long run of all handlers: memory, handles, threads and files stay what they were."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandFlipd, RandScaleIntensityd
from torch import nn

from mod_components.handlers import (
    Checkpoint,
    Guard,
    Reseed,
    TrainingLog,
    ValidationLog,
    loss_terms,
)
from mod_components.metrics import RegionDice
from mod_components.mod import Attach, WeightAverage, parameter_groups, state_objects
from tests.toys import ToyNetwork, toy_components, toy_data

STEPS, EPOCH, WARM = 2000, 20, 500
MEGABYTE = 2**20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc"),
]


class Watch:
    """Notes what the process and its folder hold at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[int, dict[str, int]] = {}

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        status = Path("/proc/self/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert resident is not None
        self.seen[engine.state.iteration] = {
            "memory": int(resident[1]) * 1024,
            "handles": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "log handlers": len(logging.root.handlers),
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
        }


class SpoilNowAndThen:
    """A step that is not finite every 500."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(every=WARM), self)

    def __call__(self, engine: Any) -> None:
        engine.state.batch["image"][0, 0, 8, 8, 8] = float("nan")


def loader(cases: int, transform: Any = None, **settings: Any) -> DataLoader:
    dataset = Dataset(toy_data(cases), transform)
    return DataLoader(dataset, batch_size=1, num_workers=2, **settings)


def make_trainer(folder: Path, watch: Watch) -> SupervisedTrainer:
    """What a bundle's train.json makes, at toy size."""
    network = ToyNetwork(batch_norm=True)
    mod: dict[str, Any] = toy_components(network)
    mod["average"] = WeightAverage(network, folder / "models")
    optimizer = torch.optim.AdamW(parameter_groups(network, mod, 0.05), lr=1e-3)
    scheduler = WarmupCosineSchedule(optimizer, warmup_steps=40, t_total=STEPS)
    transform = Compose(
        [RandFlipd(["image", "label"], prob=0.5), RandScaleIntensityd("image", 0.1, prob=1.0)]
    )
    train = loader(EPOCH, transform, shuffle=True)
    board = {"log_dir": str(folder / "eval" / "tensorboard")}
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=loader(2),
        network=network,
        key_val_metric={"val_mean_dice": RegionDice()},
        postprocessing=lambda item: {**item, "pred": (item["pred"] > 0).float()},
        val_handlers=[
            ValidationLog(folder / "eval"),
            TensorBoardStatsHandler(**board, iteration_log=False),
        ],
    )
    return SupervisedTrainer(
        device="cpu",
        max_epochs=STEPS // EPOCH,
        train_data_loader=train,
        network=network,
        optimizer=optimizer,
        loss_function=nn.BCEWithLogitsLoss(),
        train_handlers=[
            Attach(mod),
            Guard(clip_norm=1),
            Reseed(42, train.dataset),
            LrScheduleHandler(scheduler, epoch_level=False, print_lr=False),
            TrainingLog(folder / "eval"),
            ValidationHandler(5, evaluator),
            TensorBoardStatsHandler(
                **board,
                iteration_log=10,
                output_transform=loss_terms,
                state_attributes=["learning_rate"],
            ),
            Checkpoint(
                folder / "models",
                network,
                state_objects(mod, optimizer=optimizer, scheduler=scheduler),
                evaluator=evaluator,
                keep_last=3,
            ),
            SpoilNowAndThen(),
            watch,
        ],
    )


def test_nothing_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(tmp_path)
    level = logging.root.level
    logging.root.setLevel(logging.INFO)  # as the bundles' logging.conf
    try:
        make_trainer(tmp_path, watch).run()
    finally:
        logging.root.setLevel(level)
    first, last = watch.seen[WARM], watch.seen[STEPS]
    with capsys.disabled():
        print(f"\nstep {WARM}: {first}\nstep {STEPS}: {last}")
    later = [seen for step, seen in watch.seen.items() if step >= WARM]
    assert max(seen["memory"] for seen in later) < first["memory"] + 30 * MEGABYTE
    for what in ("handles", "threads", "log handlers", "files"):
        assert len({seen[what] for seen in later}) == 1, what
    grown = (last["bytes"] - first["bytes"]) / (STEPS - WARM)
    assert grown < 200, f"{grown:.0f} bytes a step"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        *("epoch_0098.pt", "epoch_0099.pt", "epoch_0100.pt"),
        *("last.pt", "model.pt", "model_ema.pt", "training.json"),
    ]
    text = (tmp_path / "eval" / "training.log").read_text()
    assert text.count("not finite") == STEPS // WARM
