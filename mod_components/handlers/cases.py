"""The cases of an evaluation step, and what all processes have found of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ignite.distributed as idist
import torch.distributed
from ignite.engine import Engine

__all__ = ["all_processes", "decollated", "gather_by_case"]

T = TypeVar("T")


def decollated(engine: Engine, who: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of what went in and what came out of a step, a case each.

    Args:
        engine: a MONAI evaluator.
        who: the handler that asks, for the message.

    Raises:
        TypeError: if the evaluator leaves whole batches.
    """
    batch, output = engine.state.batch, engine.state.output
    if not isinstance(batch, list) or not isinstance(output, list):
        raise TypeError(f"{who} needs an evaluator with decollate=True.")
    yield from zip(batch, output, strict=True)


def all_processes(found: T) -> list[T]:
    """What each process has found, by its rank. Every process must call it."""
    everyone: list[Any] = [found]
    if idist.get_world_size() > 1:
        everyone = [None] * idist.get_world_size()
        torch.distributed.all_gather_object(everyone, found)
    return everyone


def gather_by_case(found: Mapping[str, T]) -> dict[str, T]:
    """What all processes have found, sorted by case; the first process's where two have one."""
    merged: dict[str, T] = {}
    for part in all_processes(dict(found)):
        merged = {**part, **merged}
    return dict(sorted(merged.items()))
