"""Saves what is needed to use the network and to resume its training, and resumes it."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

import mod_components
from mod_components.errors import CheckpointError, TrainingError
from mod_components.files import (
    DATALIST,
    POSTPROCESSING,
    copy_atomically,
    refuse_unwritable,
    save_json,
    save_tensors,
)
from mod_components.handlers.earlier import (
    LAST,
    MODEL,
    REPORT,
    began_with_weights,
    epoch_states,
    history,
    keep_earlier,
    refuse_previous,
)
from mod_components.handlers.restore import restore
from mod_components.handlers.weights import check_fit, first_not_finite, read_checkpoint
from mod_components.networks import plain_module
from mod_components.process import launch
from mod_components.settings import flag, whole_number

__all__ = ["Checkpoint"]

logger = logging.getLogger("mod_components.checkpoint")

EPOCH = "epoch_{:04d}.pt"


class Checkpoint:
    """Writes three files after epochs, each whole or not at all, and resumes from them.

    * ``model.pt``: the best network by the evaluator's key metric, a flat ``state_dict`` that fits
      the plain network.
    * ``last.pt``: everything to resume: the named objects, the gradient scaler, the epoch. With
      ``keep_last`` above 1, those of the last epochs are kept as ``epoch_0012.pt`` too.
    * ``training.json``: settings, metrics, versions and command of the run.
    * ``datalist.json``: which case trains and which is held out.

    Until the first validation ``model.pt`` is the network of the last epoch. When a new run has
    made its first step, what an earlier run left moves to ``previous/``, so that files of two runs
    never stand side by side. Its ``model.pt`` and ``training.json`` are copied there and stay until
    the new run first saves: a server can go on using them.

    Args:
        ckpt_dir: folder of the files.
        network: the network in training, wrapped or not.
        objects: more objects with ``state_dict()`` and ``load_state_dict()``, by name: optimizer,
            scheduler, MOD's components.
        evaluator: the validation engine; without one the last network is the best.
        resume: continue from ``last.pt`` (true, false or a string saying so).
        resume_from: continue from this state in ``ckpt_dir`` instead: its name, or its path.
        keep_last: of how many epochs, the last one included, the state is kept.
        init_from: the weights that the run begins with, if they are another run's: what those were
            trained on is noted too.
        settings: what to note of the run in ``training.json``.
        datalist: the split to write to ``datalist.json``.
        resumable: write ``last.pt``. MONAI Label takes the weights file with the shortest name
            when it starts, and goes on with random weights when that is ``last.pt``.

    Raises:
        SettingsError: if ``keep_last`` is below 1 or no number.
        CheckpointError: if ``resume_from`` is in another folder.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        network: nn.Module,
        objects: Mapping[str, Any],
        evaluator: SupervisedEvaluator | None = None,
        resume: bool | str = False,
        settings: Mapping[str, Any] | None = None,
        datalist: Mapping[str, Any] | None = None,
        resumable: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
        keep_last: int | str = 1,
        init_from: str | os.PathLike[str] = "",
    ) -> None:
        self.keep_last = whole_number("keep_last", keep_last, 1)
        self.folder = Path(ckpt_dir)
        self.network = network
        self.objects = dict(objects)
        self.evaluator = evaluator
        self.resume = flag(resume)
        self.state_file = _state_file(self.folder, resume_from)
        self.settings = dict(settings or {})
        self.datalist = dict(datalist or {})
        self.resumable = resumable
        self.init_from = "" if self.resume else os.path.expanduser(init_from)
        refuse_previous(self.init_from, self.folder)
        if self.resume and began_with_weights(self.folder / REPORT):
            self.settings["pretrained"] = True  # whether or not the command says so again
        begun_in = Path(self.init_from).parent if self.init_from else self.folder
        pretrained = bool(self.settings.get("pretrained"))
        self.history = history(begun_in / REPORT, self.resume) if pretrained else []
        self._first_save = not self.resume

    def attach(self, engine: SupervisedTrainer) -> None:
        """Resume when training starts; save after each epoch.

        Must stand behind the validation handler, whose result it reads, and behind the handler
        that steps the learning rate, whose state it saves.

        Args:
            engine: the trainer.

        Raises:
            CheckpointError: when there is nothing to resume.
        """
        if self.resume and not self.state_file.is_file():
            raise CheckpointError(self._nothing_there())
        engine.add_event_handler(Events.STARTED, self._refuse_unwritable)
        engine.add_event_handler(Events.STARTED, self._start)
        if not self.resume:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self._keep_earlier)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _refuse_unwritable(self) -> None:
        """Before the first epoch, not after it."""
        if idist.get_rank() > 0:
            return
        refuse_unwritable(self.folder, "ckpt_dir")

    def _nothing_there(self) -> str:
        states = [path.name for path in (*epoch_states(self.folder), self.folder / LAST)]
        there = ", ".join(name for name in sorted(states) if (self.folder / name).is_file())
        if self.state_file.name != LAST and there:
            return f"--resume_from: {self.state_file} does not exist; the states there are {there}."
        return (
            f"--resume true, but {self.state_file} does not exist: train once without "
            "--resume, or give --ckpt_dir the folder of the run to continue."
        )

    def _start(self, engine: SupervisedTrainer) -> None:
        if not self.resume:
            return
        path = self.state_file
        state = read_checkpoint(path)
        if "epoch" not in state:
            raise CheckpointError(
                f"{path} holds weights alone, not a state to resume: give {LAST} or an epoch_*.pt."
            )
        self._check_same_parts(state, path)
        network = plain_module(self.network)
        check_fit(network, state["network"], path)
        network.load_state_dict(state["network"])
        steps = _steps(engine, state)
        for name, item in self.objects.items():
            try:
                restore(name, item, state[name], steps)
            except (RuntimeError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{path}: its {name} does not fit this run ({error}). Give the settings that "
                    "it was trained with (training.json beside it lists them)."
                ) from error
        if engine.scaler is not None and state.get("scaler"):
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = steps[1]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        done, total = state["epoch"], engine.state.max_epochs
        if done >= total:
            logger.info("nothing left to train: epoch %d of %d; raise --epochs.", done, total)
        else:
            logger.info("resumed from %s after epoch %d of %d.", path, done, total)

    def _check_same_parts(self, state: Mapping[str, Any], path: Path) -> None:
        expected = {"network", *self.objects}
        plain = {"scaler", "epoch", "iteration", "best_metric", "best_metric_epoch", "launch"}
        found = set(state) - plain
        if found != expected:
            raise CheckpointError(
                f"{path} was written by a run of other components: it holds {sorted(found)}, this "
                f"run has {sorted(expected)}. Give the settings of that run (use_mod, "
                "use_tokenizer, use_predictor, use_ema, probe_from), or train anew without "
                "--resume."
            )

    def _save(self, engine: SupervisedTrainer) -> None:
        self._refuse_lost_weights(engine.state.epoch)  # on every process: all end alike
        if idist.get_rank() > 0:
            return
        epoch = engine.state.epoch
        weights = {
            name: tensor.detach()
            for name, tensor in plain_module(self.network).state_dict().items()
        }
        if self._first_save:  # they are an earlier model's
            for name in (DATALIST, POSTPROCESSING):
                (self.folder / name).unlink(missing_ok=True)
        if self.datalist:  # once a run: a resumed one may have seen more scans
            save_json(self.datalist, self.folder / DATALIST)
            self.datalist = {}
        best = -1 if self.evaluator is None else self.evaluator.state.best_metric_epoch
        if best in (-1, epoch):
            # before last.pt: a run killed between the two redoes the epoch and its best model
            if self._first_save:  # no record is better than that of an earlier run
                (self.folder / REPORT).unlink(missing_ok=True)
            save_tensors(weights, self.folder / MODEL)
            save_json(self._report(engine), self.folder / REPORT)
            self._first_save = False
        if not self.resumable:
            return
        state: dict[str, Any] = {"network": weights}
        state |= {name: item.state_dict() for name, item in self.objects.items()}
        state["scaler"] = engine.scaler.state_dict() if engine.scaler is not None else {}
        state |= {"epoch": epoch, "iteration": engine.state.iteration, "launch": launch()}
        state |= self._best()
        save_tensors(state, self.folder / LAST)
        self._keep_last_epochs(epoch)

    def _refuse_lost_weights(self, epoch: int) -> None:
        modules = {name: x for name, x in self.objects.items() if isinstance(x, nn.Module)}
        for owner, module in {"network": plain_module(self.network), **modules}.items():
            if (lost := first_not_finite(module)) is not None:
                raise TrainingError(
                    f"after epoch {epoch} the weights of {owner} are not finite ({lost}): nothing "
                    f"of this epoch is saved in {self.folder}. Lower learning_rate, or clip "
                    "gradients (--clip_norm 1); then --resume true goes on from the last epoch "
                    "that was saved."
                )

    def _keep_last_epochs(self, epoch: int) -> None:
        """Give ``last.pt`` a second name that tells its epoch; remove those of other epochs."""
        kept = {self.state_file.name}
        if self.keep_last > 1:
            kept |= {EPOCH.format(epoch - back) for back in range(self.keep_last)}
            newest = self.folder / EPOCH.format(epoch)
            newest.unlink(missing_ok=True)
            try:
                os.link(self.folder / LAST, newest)
            except OSError:  # a file system without hard links
                copy_atomically(self.folder / LAST, newest)
        for path in epoch_states(self.folder):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _keep_earlier(self, _engine: SupervisedTrainer) -> None:
        if idist.get_rank() == 0:
            keep_earlier(self.folder, self.init_from)

    def _best(self) -> dict[str, Any]:
        if self.evaluator is None:
            return {"best_metric": -1.0, "best_metric_epoch": -1}
        state = self.evaluator.state
        return {
            "best_metric": float(state.best_metric),
            "best_metric_epoch": int(state.best_metric_epoch),
        }

    def _report(self, engine: SupervisedTrainer) -> dict[str, Any]:
        metrics = {} if self.evaluator is None else self.evaluator.state.metrics
        return {
            "settings": self.settings,
            **({"history": self.history} if self.history else {}),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "metrics": {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0},
            "versions": {
                "mod_components": mod_components.__version__,
                "monai": monai.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "command": sys.argv,
        }


def _state_file(folder: Path, name: str | os.PathLike[str] | None) -> Path:
    """The file to resume from: given by its name or its path, or the last state."""
    given = Path(str(name or LAST))
    if given.name != str(given) and given.parent.resolve() != folder.resolve():
        raise CheckpointError(
            f"--resume_from {name} is not in {folder}, where the run's split and its best model "
            f"are: give --ckpt_dir {given.parent} with --resume_from {given.name}."
        )
    return folder / given.name


def _steps(engine: SupervisedTrainer, state: Mapping[str, Any]) -> tuple[int, int]:
    """Steps that were made until a state was saved, and those that as many epochs are now."""
    before, now = state["iteration"], state["epoch"] * (engine.state.epoch_length or 0)
    if not before or not now or before == now:
        return before, before
    logger.warning(
        "an epoch has %d steps now and had %g: schedules go on from as many epochs as were made.",
        engine.state.epoch_length,
        before / state["epoch"],
    )
    return before, now
