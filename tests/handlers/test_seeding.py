"""Re-seeding: each epoch draws the same, however the process came there."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose, RandGaussianNoised, RandShiftIntensityd

from mod_components.handlers.seeding import Reseed, epoch_seed


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def engine_at(epoch: int) -> Any:
    return SimpleNamespace(state=SimpleNamespace(epoch=epoch))


def noisy(kind: type = Dataset) -> Dataset:
    transform = Compose([RandShiftIntensityd("image", 1.0, prob=0.9), RandGaussianNoised("image")])
    return kind([{"image": torch.zeros(1, 2, 2, 2)} for _ in range(4)], transform)


def test_seeds_differ_by_seed_epoch_and_process() -> None:
    seeds = {epoch_seed(s, e, r) for s in range(4) for e in range(1, 20) for r in range(4)}
    assert len(seeds) == 4 * 19 * 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert epoch_seed(42, 3, 1) == epoch_seed(42, 3, 1)
    assert epoch_seed(1, 2) != epoch_seed(2, 1)


def test_torch_random_and_numpy_are_seeded_by_epoch() -> None:
    reseed = Reseed(42)
    reseed(engine_at(3))
    first = draws()
    draws()
    reseed(engine_at(4))
    other = draws()
    reseed(engine_at(3))
    assert draws() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", [Dataset, CacheDataset])
@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_draw_the_same_in_a_repeated_epoch(kind: type, workers: int) -> None:
    dataset = noisy(kind)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers)
    reseed = Reseed(42, dataset)

    def epoch(number: int) -> torch.Tensor:
        reseed(engine_at(number))
        return torch.cat([batch["image"] for batch in loader])

    first, second, again = epoch(1), epoch(2), epoch(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len({float(x.sum()) for x in first}) == 4  # samples differ from each other


def test_it_runs_at_the_start_of_each_epoch() -> None:
    engine = Engine(lambda _engine, _batch: None)
    seen: list[tuple[float, float, float]] = []
    Reseed(7).attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(draws()))
    engine.run([0, 1], max_epochs=2)
    Reseed(7)(engine_at(2))
    assert seen[1] == draws()
    assert seen[0] != seen[1]
