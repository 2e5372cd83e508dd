"""Steps whose numbers have gone wrong: named, skipped, and the end of a run that has too many."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from mod_components.errors import TrainingError
from mod_components.handlers.cases import all_processes
from mod_components.handlers.logs import loss_tensors
from mod_components.settings import number, whole_number

__all__ = ["Guard"]

logger = logging.getLogger("mod_components.guard")


class Guard:
    """Skips training steps that are not finite, clips gradients, and logs their norm.

    A step is bad when one of its losses is not finite, or its gradients are not. The line that
    tells so names epoch, step, terms, cases and their files. The step is then not made, nor are the
    other batches of one that accumulates gradients over several: weights,
    optimizer, whatever follows the optimizer's steps and running statistics of normalisation layers
    stay as they were; schedules and counters go on. So does what a handler keeps of the losses'
    inputs before this one can judge: MOD's tokenizer moves its centres and its memory of class
    tokens by what the teacher said, where that is finite. All processes skip a step together. The
    run ends at the step after ``max_bad_steps`` of them (counted from its start, also when it
    resumes).

    With a gradient scaler, gradients that are not finite beside losses that are mean that its scale
    is too high, which it mends by itself. They count only where the scale is 1 or less.

    The norm of all gradients, before clipping, and the number of skipped steps go to
    ``engine.state.metrics`` each epoch as ``grad_norm`` (mean over the steps made) and
    ``skipped_steps``.

    One small tensor is read from the device in each step (and the scale, with a gradient scaler):
    a check that comes a step later would find weights that are lost already.

    Must stand behind the handlers that change losses or gradients, and before those that show an
    epoch's figures.

    Args:
        max_bad_steps: how many steps a run may skip.
        clip_norm: largest total norm of the gradients of all parameters that the optimizer has;
            larger ones are scaled down to it. 0 or None: no clipping.

    Raises:
        SettingsError: for a setting that is negative, infinite or no number.
    """

    def __init__(self, max_bad_steps: int = 10, clip_norm: float | None = None) -> None:
        self.max_bad_steps = whole_number("max_bad_steps", max_bad_steps)
        self.clip_norm = number("clip_norm", clip_norm or 0)
        self.bad_steps: list[str] = []
        self._optimizer: Any = None
        self._statistics: list[Tensor] = []
        self._before: list[Tensor] = []
        self._norms: list[float] = []
        self._skipped = 0
        self._lost = False  # a step that is being accumulated, and will not be made

    def attach(self, engine: SupervisedTrainer) -> None:
        """
        Args:
            engine: a MONAI ``SupervisedTrainer``.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._keep_statistics)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._judge)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._give_back)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _start(self, engine: SupervisedTrainer) -> None:
        self._give_back(engine)  # an earlier run may have ended within a bad step
        self.bad_steps, self._norms, self._skipped, self._lost = [], [], 0, False
        self._statistics = [
            buffer
            for module in engine.network.modules()
            if getattr(module, "running_mean", None) is not None
            for buffer in module.buffers(recurse=False)
        ]

    def _keep_statistics(self, _engine: SupervisedTrainer) -> None:
        # the forward pass moves them before anything can be known of the step
        self._before = [buffer.clone() for buffer in self._statistics]

    def _judge(self, engine: SupervisedTrainer) -> None:
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        # measures alone; where the norm is infinite the gradients, of no use any more, become NaN
        norm = clip_grad_norm_(parameters, math.inf)
        terms = loss_tensors(engine.state.output)
        losses = torch.stack(
            [torch.as_tensor(v, device=norm.device).float() for v in terms.values()]
        )
        finite = torch.stack([losses.isfinite().all(), norm.isfinite()]).float()
        if idist.get_world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        losses_finite, gradients_finite, size = torch.cat([finite, norm[None]]).tolist()
        scaler = _scaler(engine)
        scale = 1.0 if scaler is None else scaler.get_scale()
        if self._lost:  # told already
            self._skip(engine, parameters)
        elif losses_finite and gradients_finite:
            self._norms.append(size / scale)
            if self.clip_norm and _steps_now(engine):
                if scaler is not None:
                    scaler.unscale_(engine.optimizer)
                clip_grad_norm_(parameters, self.clip_norm)
        elif not losses_finite or scale <= 1:
            self._skip(engine, parameters)
            self._tell(engine, [name for name, value in terms.items() if not math.isfinite(value)])
            self._lost = True
        self._lost = self._lost and not _steps_now(engine)

    def _skip(self, engine: SupervisedTrainer, parameters: list[nn.Parameter]) -> None:
        if _scaler(engine) is not None:  # skips by itself, if it sees a gradient that is not finite
            next(p.grad for p in parameters if p.grad is not None).fill_(math.nan)
        else:
            for parameter in parameters:
                parameter.grad = None
            # not even an idle step, whose hooks would move averages of the weights
            self._optimizer = engine.optimizer
            engine.optimizer = _NoStep()  # type: ignore[assignment]
        for buffer, before in zip(self._statistics, self._before, strict=True):
            buffer.copy_(before)

    def _give_back(self, engine: SupervisedTrainer) -> None:
        if self._optimizer is not None:
            engine.optimizer, self._optimizer = self._optimizer, None

    def _tell(self, engine: SupervisedTrainer, terms: list[str]) -> None:
        found = all_processes((terms, _cases(engine.state.batch)))
        # a process whose losses are finite is only mentioned when all are: gradients are shared
        named = [(part, cases) for part, cases in found if part] or found
        terms = sorted({term for part, _ in named for term in part})
        if len(terms) > 1:
            terms = [term for term in terms if term != "loss"]  # the sum of the others
        what = f"{' and '.join(terms) or 'gradients'} not finite"
        cases = "; ".join(case for _, part in named for case in part)
        where = f"epoch {engine.state.epoch}, step {engine.state.iteration}"
        self.bad_steps.append(f"{where}: {what} (cases: {cases or 'not named'})")
        self._skipped += 1
        count = len(self.bad_steps)
        if count > self.max_bad_steps:
            self._give_back(engine)
            raise TrainingError(self._end(terms))
        if idist.get_rank() == 0:
            logger.warning(
                "%s; skipped, %d of at most %d skipped steps (max_bad_steps).",
                self.bad_steps[-1],
                count,
                self.max_bad_steps,
            )

    def _end(self, terms: list[str]) -> str:
        first, last = self.bad_steps[0], self.bad_steps[-1]
        several = "" if len(self.bad_steps) == 1 else f" The first was {first}."
        share = "mod_weight, " if set(terms) & {"loss_token", "loss_class", "loss_recon"} else ""
        return (
            f"{last}. That is bad step {len(self.bad_steps)} of this run, and max_bad_steps allows "
            f"{self.max_bad_steps}.{several} Nothing of this epoch is saved. Lower {share}"
            "learning_rate, or clip gradients (--clip_norm 1), or look at the cases if they are "
            "always the same; then --resume true goes on from the last whole epoch."
        )

    def _report(self, engine: SupervisedTrainer) -> None:
        made = len(self._norms)
        engine.state.metrics["grad_norm"] = sum(self._norms) / made if made else math.nan
        engine.state.metrics["skipped_steps"] = self._skipped
        self._norms, self._skipped = [], 0


class _NoStep:
    """Stands for the optimizer in a step that is not made."""

    def step(self) -> None:
        pass


def _scaler(engine: SupervisedTrainer) -> Any:
    """The trainer's gradient scaler, if it scales (on a CPU MONAI makes one that does not)."""
    scaler = engine.scaler if engine.amp else None
    return scaler if scaler is not None and scaler.is_enabled() else None


def _steps_now(engine: SupervisedTrainer) -> bool:
    """Whether the trainer's optimizer steps after this batch, or only adds up its gradients."""
    accumulated = getattr(engine, "accumulation_steps", 1)
    length = engine.state.epoch_length or engine.state.iteration
    done = (engine.state.iteration - 1) % length + 1
    return done % accumulated == 0 or done == length


def _cases(batch: Any) -> list[str]:
    """Case ids of a batch with the files of their images, as far as they are known."""
    if not isinstance(batch, Mapping):
        return []
    ids = batch.get("case")
    ids = [str(case) for case in ids] if isinstance(ids, list | tuple) else []
    meta = getattr(batch.get("image"), "meta", {})
    files = meta.get("filename_or_obj") if isinstance(meta, Mapping) else None
    files = [str(file) for file in files] if isinstance(files, list | tuple) else []
    if not ids:
        return files
    if len(files) != len(ids):
        return ids
    return [f"{case}, {file}" for case, file in zip(ids, files, strict=True)]
