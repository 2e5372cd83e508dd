"""What training and validation say while they run: progress bar, log lines and CSV files."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import is_scalar
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mod_components.handlers.log_file import log_to_file
from mod_components.handlers.tables import EpochTable

logger = logging.getLogger("mod_components.training")

Number = int | float

_POSTFIX_SECONDS = 0.5
_SECONDS_IN_A_FILE = 30.0


def loss_terms(output: Any) -> dict[str, float]:
    """Loss terms of one step, for the ``output_transform`` of MONAI's stats handlers.

    Args:
        output: ``engine.state.output``: a dict, or a list of dicts after decollation (MONAI
            repeats a batch's losses in each item, so the first one speaks for all).

    Returns:
        Every scalar whose key starts with ``"loss"``, as a float.
    """
    return {name: float(value) for name, value in loss_tensors(output).items()}


def loss_tensors(output: Any) -> dict[str, Any]:
    """The same without leaving the device: floats, or detached 0-d tensors.

    Args:
        output: as for :func:`loss_terms`.
    """
    item = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(item, Mapping):
        return {}
    return {
        # float(): a sum over an epoch in half precision would stand still
        name: value.detach().float() if isinstance(value, torch.Tensor) else value
        for name, value in item.items()
        if isinstance(name, str) and name.startswith("loss") and _is_number(value)
    }


def _is_number(value: Any) -> bool:
    return is_scalar(value) and not isinstance(value, str | bytes)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if _is_number(value)}


def _on_first_process(engine: Engine, event: int) -> bool:
    """Event filter; asked at each event, as handlers may be attached before the processes meet."""
    return idist.get_rank() == 0


class _Means:
    """Means of named scalars that stay on their device until asked for.

    Values that are not finite are left out: they belong to steps that :class:`Guard` skips.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}

    def add(self, terms: Mapping[str, Any]) -> None:
        for name, number in terms.items():
            value = torch.as_tensor(number)
            self._sums[name] = self._sums.get(name, 0.0) + value.nan_to_num(0.0, 0.0, 0.0)
            self._counts[name] = self._counts.get(name, 0) + value.isfinite()

    def take(self) -> dict[str, float]:
        """The means so far, and start again."""
        means = {name: float(total / self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class _Lines:
    """Standard error where it is no terminal: a bar's states as lines of their own."""

    def write(self, text: str) -> None:
        text = text.strip()  # the bar's carriage returns, and blanks that wipe it
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _open_bar(**steps: int | None) -> tqdm:
    # A position, so that the bar of an earlier run that failed is not stepped around.
    settings: dict[str, Any] = {"desc": "training", "unit": "step", "position": 0, **steps}
    if sys.stderr.isatty():
        return tqdm(**settings, dynamic_ncols=True)
    return tqdm(
        **settings,
        file=_Lines(),
        mininterval=_SECONDS_IN_A_FILE,
        maxinterval=2 * _SECONDS_IN_A_FILE,
    )


class TrainingLog:
    """One progress bar over the whole training, one line and one CSV row an epoch.

    Logs through ``mod_components.training`` and writes ``train.csv``: epoch, mean of each loss
    term, learning rate of the last step, seconds, and every scalar of ``engine.state.metrics``.
    Put it behind the handlers whose figures it should show and before the validation, whose
    line then follows the epoch's and whose time does not count as the epoch's. Losses are those
    of the first process's share of the data; the others stay silent.

    The rate is left in ``engine.state.learning_rate``, where ``state_attributes`` of MONAI's
    stats handlers finds it.

    A resumed run goes on in the file; a fresh one replaces it and removes the ``validation.csv``
    of the run before.

    While it runs, log lines and warnings also go to ``training.log``
    (:func:`~mod_components.handlers.log_file.log_to_file`).

    Args:
        output_dir: folder for ``train.csv`` and ``training.log``.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)
        self._table = EpochTable(self.output_dir / "train.csv")
        self._means = _Means()
        self._bar: tqdm | None = None
        self._console = ExitStack()
        self._learning_rate: float | None = None
        self._start = self._epoch_start = self._next_postfix = 0.0
        self._start_iteration = 0

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer; its ``optimizer``, if it has one, gives the learning rate.
        """
        for event, handler in (
            (Events.EPOCH_STARTED, self._epoch_started),
            (Events.ITERATION_STARTED, self._iteration_started),
            (Events.ITERATION_COMPLETED, self._iteration_completed),
            (Events.EPOCH_COMPLETED, self._epoch_completed),
        ):
            engine.add_event_handler(event(event_filter=_on_first_process), handler)
        for event in (Events.STARTED, Events.TERMINATE, Events.COMPLETED):
            engine.add_event_handler(event, self._close)  # Ignite takes no filter for TERMINATE
        engine.add_event_handler(Events.STARTED(event_filter=_on_first_process), self._started)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
        self._console.close()

    def _started(self, engine: Engine) -> None:
        self._console.enter_context(log_to_file(self.output_dir / "training.log"))

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error  # Ignite leaves that to whoever handles the event

    def _epoch_started(self, engine: Engine) -> None:
        # Not at STARTED: whether the run resumes is decided by another handler of that event.
        if self._bar is None:
            self._first_epoch(engine)
        self._means.take()
        self._epoch_start = time.monotonic()

    def _first_epoch(self, engine: Engine) -> None:
        state = engine.state
        self._table.take_over(before_epoch=state.epoch)
        if state.epoch == 1:
            (self.output_dir / "validation.csv").unlink(missing_ok=True)
        self._start, self._start_iteration = time.monotonic(), state.iteration
        self._bar = _open_bar(total=_total_steps(engine), initial=state.iteration)
        if sys.stderr.isatty():
            self._redirect_console()

    def _redirect_console(self) -> None:
        """Let every library's log lines go above the bar instead of through it."""
        console = [
            handler
            for handler in logging.root.handlers
            if isinstance(handler, logging.StreamHandler)
            and handler.stream in (sys.stdout, sys.stderr)
        ]
        if console:  # without one, tqdm would add one of its own
            self._console.enter_context(logging_redirect_tqdm())
            logging.root.handlers[-1].setLevel(console[0].level)

    def _iteration_started(self, engine: Engine) -> None:
        # Before the step: schedulers move the rate after it.
        optimizer = getattr(engine, "optimizer", None)
        if optimizer is not None:
            self._learning_rate = float(optimizer.param_groups[0]["lr"])
            engine.state.learning_rate = self._learning_rate  # type: ignore[attr-defined]

    def _iteration_completed(self, engine: Engine) -> None:
        terms = loss_tensors(engine.state.output)
        self._means.add(terms)
        if self._bar is None:
            return
        state, now = engine.state, time.monotonic()
        last = state.epoch_length is not None and state.iteration % state.epoch_length == 0
        if last or now >= self._next_postfix:  # seldom, as reading a loss waits for the GPU
            self._next_postfix = now + _POSTFIX_SECONDS
            shown = {name: f"{float(value):.4g}" for name, value in terms.items()}
            shown["epoch"] = f"{state.epoch}/{state.max_epochs}"
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(state.iteration - self._bar.n)

    def _epoch_completed(self, engine: Engine) -> None:
        state, now = engine.state, time.monotonic()
        losses, figures = self._means.take(), _scalars(state.metrics)
        row: dict[str, Number] = {"epoch": state.epoch, **losses}
        if self._learning_rate is not None:
            row["lr"] = self._learning_rate
        row["seconds"] = now - self._epoch_start
        row.update({name: value for name, value in figures.items() if name not in row})
        self._table.append(row)
        total, done = _total_steps(engine), state.iteration - self._start_iteration
        parts = [f"{name} {value:.4g}" for name, value in losses.items()]
        if self._learning_rate is not None:
            parts.append(f"lr {self._learning_rate:.3g}")
        parts.append(f"{row['seconds']:.1f} s")
        if total is not None and done > 0:
            left = (now - self._start) / done * max(total - state.iteration, 0)
            parts.append(f"ETA {_hours(left)}")
        logger.info("epoch %d/%s: %s", state.epoch, state.max_epochs, ", ".join(parts))


def _hours(seconds: float) -> str:
    """``h:mm:ss``, however many hours."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _total_steps(engine: Engine) -> int | None:
    epochs, length = engine.state.max_epochs, engine.state.epoch_length
    return None if epochs is None or length is None else epochs * length


class ValidationLog:
    """One line and one CSV row for each validation.

    Logs through ``mod_components.training`` and appends the epoch and every scalar of
    ``engine.state.metrics`` to ``validation.csv``. Rows of this and later epochs that an
    earlier run has left are dropped when the first one is written.

    Args:
        output_dir: folder for ``validation.csv``.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self._table = EpochTable(Path(output_dir) / "validation.csv")
        self._last_epoch: int | None = None

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator; MONAI's ``ValidationHandler`` runs it at the trainer's epoch.
        """
        engine.add_event_handler(Events.COMPLETED(event_filter=_on_first_process), self)

    def __call__(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator, with the metrics of all processes.
        """
        epoch, metrics = engine.state.epoch, _scalars(engine.state.metrics)
        if self._last_epoch is None or epoch <= self._last_epoch:
            self._table.take_over(before_epoch=epoch)
        self._last_epoch = epoch
        self._table.append({"epoch": epoch, **metrics})
        shown = " ".join(f"{_title(name)} {value:.4f}" for name, value in metrics.items())
        logger.info("validation at epoch %d: %s", epoch, shown)


def _title(metric: str) -> str:
    """``val_mean_dice`` → ``mean Dice``, ``val_dice_tc`` → ``TC``, ``hd95_wt`` → ``HD95 WT``."""
    words = metric.removeprefix("val_").split("_")
    if words[0] == "dice" and len(words) == 2:
        return words[1].upper()
    names = {"dice": "Dice", "hd95": "HD95", "tc": "TC", "wt": "WT", "et": "ET"}
    return " ".join(names.get(word, word) for word in words)
