"""Saved states, taken up under the settings of the run that goes on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["restore"]

_OF_THE_RUN = ("weight_decay", "initial_lr")  # of an optimizer's groups
_POSITION = ("last_epoch", "_step_count", "_last_lr")  # of a schedule


def restore(
    name: str, item: Any, state: Mapping[str, Any], steps: tuple[int, int] = (1, 1)
) -> None:
    """Give an object its saved state, but for what the run's settings decide.

    PyTorch saves an optimizer's weight decay, and a schedule's learning rate and length, in their
    states. Taken as they are, a run that is resumed with a lower rate, or for more epochs, would
    go on as if nothing had been said; MONAI's cosine, past its end, would even climb again. So an
    optimizer keeps its own weight decay, and a schedule that computes its rate from the number of
    steps (a ``LambdaLR``, such as MONAI's ``WarmupCosineSchedule``) takes that number alone and
    sets the rate that its own settings give there. Other schedules carry on the saved rate.

    Args:
        name: of the object, for errors.
        item: an object with ``load_state_dict()``; a schedule after its optimizer.
        state: what its ``state_dict()`` was.
        steps: how many had been made, and how many as many epochs are now: with other batches or
            processes they differ, and schedules that count steps would be elsewhere.

    Raises:
        ValueError: if the state does not fit; or what else the object raises.
    """
    before, now = steps
    if isinstance(item, Optimizer):
        own = [{key: group[key] for key in _OF_THE_RUN if key in group} for group in _groups(item)]
        item.load_state_dict(dict(state))
        for group, values in zip(_groups(item), own, strict=True):
            group.update(values)
    elif isinstance(item, LambdaLR):
        if missing := [key for key in _POSITION if key not in state]:
            raise ValueError(f"it is no state of {name}: it lacks {', '.join(missing)}")
        vars(item).update({key: state[key] for key in _POSITION})
        if item.last_epoch == before:  # and not epochs, which stay what they are
            item.last_epoch = now
        with warnings.catch_warnings():  # a plain LambdaLR wants to be asked in its step alone
            warnings.simplefilter("ignore", UserWarning)
            rates = [float(rate) for rate in item.get_lr()]
        for group, rate in zip(_groups(item.optimizer), rates, strict=True):
            group["lr"] = rate
        item._last_lr = list(rates)
    else:
        item.load_state_dict(state)


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return optimizer.param_groups
