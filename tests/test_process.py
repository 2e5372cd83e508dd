"""The CPU is made repeatable; a GPU's process is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mod_components.process import keep_freed_memory, prepare_cpu


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill


def test_nothing_changes_for_a_gpu() -> None:
    prepare_cpu("cuda:0")
    assert not torch.are_deterministic_algorithms_enabled()


def test_gradients_that_add_into_one_place_are_repeatable() -> None:
    prepare_cpu("cpu")
    assert torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    index = torch.randint(0, 50, (400_000,))
    weights = torch.randn(400_000)
    gradients = []
    for _ in range(5):
        table = torch.randn(50, requires_grad=True)
        (table[index] * weights).sum().backward()
        gradients.append(table.grad)
    first = gradients[0]
    assert first is not None
    assert all(torch.equal(first, other) for other in gradients[1:] if other is not None)


def test_freed_memory_is_kept_where_there_is_glibc() -> None:
    assert keep_freed_memory() in (True, False)
    x = torch.randn(64, 1024, 256)  # a block that would be mapped anew
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("keep_freed", [True, False])
def test_keeping_freed_memory_can_be_switched_off(
    keep_freed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("mod_components.process.keep_freed_memory", lambda: calls.append(True))
    prepare_cpu("cpu", keep_freed)
    assert calls == [True] * keep_freed
    assert torch.are_deterministic_algorithms_enabled()
