"""MOD's losses against loops over samples, tokens and voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mod_components.losses import (
    NoSegmentationLoss,
    class_loss,
    reconstruction_loss,
    teacher_probabilities,
    token_loss,
)

MASK = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])  # 3, 1 and 0 of 5 tokens


def naive_softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def naive_token_loss(logits: Tensor, teacher: Tensor, mask: Tensor, tau: float) -> float:
    total = 0.0
    for b in range(len(logits)):
        terms = []
        for i in range(logits.shape[1]):
            if mask[b, i]:
                q = naive_softmax(logits[b, i].double().numpy() / tau)
                terms.append(
                    -sum(float(p) * math.log(x) for p, x in zip(teacher[b, i], q, strict=True))
                )
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(logits)


def naive_reconstruction_loss(recon: Tensor, target: Tensor, mask: Tensor) -> float:
    total = 0.0
    for b in range(len(recon)):
        error, count = 0.0, 0
        for voxel in np.ndindex(*recon.shape[2:]):
            if mask[(b, 0, *voxel)]:
                for c in range(recon.shape[1]):
                    error += abs(float(recon[(b, c, *voxel)]) - float(target[(b, c, *voxel)]))
                    count += 1
        total += error / count if count else 0.0
    return total / len(recon)


def probabilities(*shape: int) -> Tensor:
    return torch.rand(shape).softmax(-1)


def test_token_loss_equals_a_loop_over_masked_tokens() -> None:
    logits, teacher = torch.randn(3, 5, 7), probabilities(3, 5, 7)
    expected = naive_token_loss(logits, teacher, MASK, 0.1)
    assert token_loss(logits, teacher, MASK, 0.1).item() == pytest.approx(expected, rel=1e-5)
    expected = naive_token_loss(logits, teacher, MASK, 0.5)
    assert token_loss(logits, teacher, MASK, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_token_loss_by_hand() -> None:
    # scores 0 and 0.1·ln 3 at τ_s = 0.1 give Q = (1/4, 3/4)
    logits = torch.tensor([[[0.0, 0.1 * math.log(3)]] * 2] * 2)
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.5, 0.5]]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    # sample means (ln 4 + ln 4/3)/2 and ln 4/3, then the batch's mean: 0.5623; a ratio of sums over
    # the batch would give (ln 4 + 2 ln 4/3)/3 = 0.6539
    expected = ((math.log(4) + math.log(4 / 3)) / 2 + math.log(4 / 3)) / 2
    assert expected == pytest.approx(0.5623, abs=1e-3)
    assert token_loss(logits, teacher, mask).item() == pytest.approx(expected, rel=1e-5)


def test_only_masked_tokens_move_the_student() -> None:
    logits = torch.randn(3, 5, 7, requires_grad=True)
    token_loss(logits, probabilities(3, 5, 7), MASK).backward()
    assert logits.grad is not None
    assert torch.all(logits.grad[MASK == 0] == 0)
    assert torch.all(logits.grad[MASK == 1].norm(dim=-1) > 0)


def test_token_gradient_is_q_minus_p() -> None:
    """Of softmax cross-entropy: (Q − P)/τ_s, over the tokens of the sample and the batch."""
    logits = torch.randn(3, 5, 7, requires_grad=True)
    teacher = probabilities(3, 5, 7)
    token_loss(logits, teacher, MASK, 0.1).backward()
    q = (logits.detach() / 0.1).softmax(-1)
    count = torch.tensor([3.0, 1.0, 1.0])[:, None, None]
    expected = (q - teacher) / 0.1 * MASK[:, :, None] / count / 3
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)


def test_samples_without_masked_tokens_count_zero() -> None:
    logits = torch.randn(2, 5, 7, requires_grad=True)
    loss = token_loss(logits, probabilities(2, 5, 7), torch.zeros(2, 5))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.all(logits.grad == 0)


def test_two_halves_of_a_batch_equal_the_whole() -> None:
    logits, teacher = torch.randn(4, 5, 7), probabilities(4, 5, 7)
    mask = torch.cat([MASK[:2], MASK[1:]])
    halves = [token_loss(logits[s], teacher[s], mask[s]) for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, token_loss(logits, teacher, mask))


def test_class_loss_equals_a_loop() -> None:
    logits, teacher = torch.randn(3, 6), probabilities(3, 6)
    rows = [naive_softmax(row.double().numpy() / 0.1) for row in logits]
    expected = np.mean([-(t.numpy() * np.log(q)).sum() for t, q in zip(teacher, rows, strict=True)])
    assert class_loss(logits, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_teacher_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.3, 0.1], [0.1, 0.1]], requires_grad=True)
    centre = torch.tensor([0.2, 0.1 - 0.05 * math.log(4)])
    # (0.1, 0.05 ln 4)/0.05 = (2, ln 4); (-0.1, 0.05 ln 4)/0.05 = (-2, ln 4)
    e2 = math.exp(2)
    expected = torch.tensor(
        [[e2 / (e2 + 4), 4 / (e2 + 4)], [1 / (1 + 4 * e2), 4 * e2 / (1 + 4 * e2)]]
    )
    p = teacher_probabilities(logits, centre, 0.05)
    torch.testing.assert_close(p, expected)
    assert not p.requires_grad


def test_reconstruction_loss_equals_a_loop_over_masked_voxels() -> None:
    recon, target = torch.randn(3, 2, 3, 4, 2), torch.randn(3, 2, 3, 4, 2)
    mask = (
        torch.rand(3, 1, 3, 4, 2) < torch.tensor([0.2, 0.8, 0.0])[:, None, None, None, None]
    ).float()
    expected = naive_reconstruction_loss(recon, target, mask)
    assert reconstruction_loss(recon, target, mask).item() == pytest.approx(expected, rel=1e-4)


def test_reconstruction_loss_by_hand() -> None:
    """One voxel of error 2 in one sample, two of error 1 in the other: (2 + 1)/2, not 4/3."""
    target = torch.zeros(2, 1, 1, 1, 3)
    recon = torch.tensor([[2.0, 9, 9], [1, -1, 9]]).reshape(2, 1, 1, 1, 3)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]]).reshape(2, 1, 1, 1, 3)
    assert reconstruction_loss(recon, target, mask).item() == pytest.approx(1.5, rel=1e-5)


def test_only_masked_voxels_move_the_reconstruction() -> None:
    recon = torch.randn(2, 4, 4, 4, 4, requires_grad=True)
    mask = (torch.rand(2, 1, 4, 4, 4) < 0.6).float()
    reconstruction_loss(recon, torch.randn(2, 4, 4, 4, 4), mask).backward()
    assert recon.grad is not None
    masked = mask.bool().expand_as(recon)
    assert torch.all(recon.grad[~masked] == 0)
    assert torch.all(recon.grad[masked] != 0)


def test_losses_are_float32_from_bfloat16() -> None:
    logits, teacher = torch.randn(3, 5, 7).bfloat16(), probabilities(3, 5, 7)
    assert token_loss(logits, teacher, MASK).dtype == torch.float32
    assert class_loss(logits[:, 0], teacher[:, 0]).dtype == torch.float32
    assert teacher_probabilities(logits, torch.zeros(7), 0.04).dtype == torch.float32
    image = torch.randn(1, 2, 3, 3, 3)
    loss = reconstruction_loss(image.bfloat16(), image, torch.ones(1, 1, 3, 3, 3))
    assert loss.dtype == torch.float32


def test_no_segmentation_loss_is_nothing_and_reaches_every_logit() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    loss = NoSegmentationLoss()(logits, torch.ones(2, 3, 4, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
