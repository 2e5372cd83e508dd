"""Heads give cosines; centres and class memory follow their statistics, checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mod_components.mod.heads import Centre, ClassMemory, ProjectionHead


def test_centre_by_hand() -> None:
    centre = Centre(2, 0.75)
    centre.update(torch.tensor([[[1.0, 0.0], [3.0, 2.0]]]))  # mean (2, 1)
    torch.testing.assert_close(centre.value, torch.tensor([2.0, 1.0]))
    centre.update(torch.tensor([[0.0, 2.0]]))  # the mean of both batches
    torch.testing.assert_close(centre.value, torch.tensor([1.0, 1.5]))
    for _ in range(2):  # the fourth update is the first that moves by a quarter
        centre.update(torch.tensor([[1.0, 1.5]]))
    centre.update(torch.tensor([[5.0, 1.5]]))  # 0.75 * 1 + 0.25 * 5
    torch.testing.assert_close(centre.value, torch.tensor([2.0, 1.5]))
    assert set(centre.state_dict()) == {"value", "updates"}
    assert not list(centre.parameters())


def test_each_position_has_a_centre_of_its_own() -> None:
    centre = Centre(2, 0.75, positions=3)
    batches = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)  # (., B, N, K)
    for number, batch in enumerate(batches, 1):
        centre.update(torch.from_numpy(batch))
        for n, k in np.ndindex(3, 2):
            expected = np.mean([seen[:, n, k].mean() for seen in batches[:number]])
            assert centre.value[n, k].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_centre_moves_by_its_momentum_once_warm(momentum: float) -> None:
    centre = Centre(1, momentum)
    centre.updates += 1000
    centre.update(torch.ones(1, 1))
    torch.testing.assert_close(centre.value, torch.tensor([1 - momentum]))


def test_centre_is_float32_and_survives_an_overflow() -> None:
    centre = Centre(2, 0.9)
    centre.update(torch.ones(4, 2, dtype=torch.bfloat16))
    assert centre.value.dtype == torch.float32
    torch.testing.assert_close(centre.value, torch.tensor([1.0, 1.0]))
    centre.update(torch.tensor([[float("nan"), 2.0]]))
    torch.testing.assert_close(centre.value, torch.tensor([1.0, 1.5]))


def test_head_gives_cosines_with_its_prototypes() -> None:
    head = ProjectionHead(5, 7, hidden=6, bottleneck=4)
    x = torch.randn(2, 3, 5) * 100
    out = head(x)
    code = head.mlp(x).detach().numpy()
    weights = head.prototypes.detach().numpy()
    for place in np.ndindex(2, 3):
        for k in range(7):
            a, b = code[place], weights[k]
            expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert out[(*place, k)].item() == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        head.prototypes *= 9  # weight-normalised: length says nothing
    torch.testing.assert_close(head(x), out)
    widths = [m.out_features for m in head.mlp if isinstance(m, nn.Linear)]
    assert widths == [6, 6, 4]
    assert isinstance(head.mlp[0], nn.LayerNorm)


def test_class_memory_by_hand() -> None:
    memory = ClassMemory(1, momentum=0.75)
    one = torch.tensor([[3.0]])
    torch.testing.assert_close(memory(one), one, rtol=1e-4, atol=0)  # nothing seen yet
    # half start (mean 0, variance 1), half batch (mean 2, variance 1): the mixture of both
    memory.update(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(memory.mean, torch.tensor([1.0]))
    torch.testing.assert_close(memory.variance, torch.tensor([0.5 + 0.5 + 1.0]))
    torch.testing.assert_close(memory(one), torch.tensor([[2.0 / 2**0.5]]), rtol=1e-4, atol=0)


def test_class_memory_has_the_statistics_of_all_it_saw() -> None:
    """As long as its updates are plain means: against NumPy on the pooled values."""
    rng = np.random.default_rng(0)
    batches = rng.normal(5, 0.1, size=(6, 4, 3))
    memory = ClassMemory(3, momentum=0.99)
    for batch in batches:
        memory.update(torch.from_numpy(batch).float())
    start = np.array([[-1.0] * 3, [1.0] * 3]).repeat(2, axis=0)  # four values, mean 0, variance 1
    pooled = np.concatenate([start, *batches])
    np.testing.assert_allclose(memory.mean, pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(memory.variance, pooled.var(0), rtol=1e-4)


def test_class_memory_forgets_by_its_momentum_and_survives_an_overflow() -> None:
    memory = ClassMemory(1, momentum=0.9)
    memory.updates += 1000
    memory.update(torch.ones(2, 1))
    torch.testing.assert_close(memory.mean, torch.tensor([0.1]))
    torch.testing.assert_close(memory.variance, torch.tensor([0.9 + 0.09]))
    memory.update(torch.tensor([[float("inf")]]))
    torch.testing.assert_close(memory.mean, torch.tensor([0.1]))
    assert not list(memory.parameters())


def test_class_memory_brings_out_what_sets_crops_apart() -> None:
    """Nearly equal class tokens give nearly equal cosines; standardised ones do not."""
    torch.manual_seed(0)
    head, memory = ProjectionHead(32, 16), ClassMemory(32, momentum=0.9)
    crops = torch.randn(32) + 0.05 * torch.randn(200, 32)
    for batch in crops.split(2):
        memory.update(batch)
    with torch.no_grad():
        plain, standardised = head(crops).std(0).mean(), head(memory(crops)).std(0).mean()
    assert standardised > 5 * plain
