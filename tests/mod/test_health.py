"""Health figures against NumPy, and a collapse that is named once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mod_components.mod.health import Health, ReconstructionHealth
from tests.toys import ToyNetwork, toy_components, toy_trainer


def test_even_use_has_the_largest_marginal_entropy() -> None:
    health = Health(8)
    health.add(torch.eye(8), torch.zeros(8, 8))
    figures = health.figures()
    assert figures["marginal_entropy"] == pytest.approx(math.log(8), rel=1e-5)
    assert figures["max_entropy"] == pytest.approx(2.0794, abs=1e-4)
    assert figures["entropy"] == pytest.approx(0, abs=1e-6)
    assert figures["divergence"] == pytest.approx(math.log(8), rel=1e-5)  # sharp P, uniform Q
    assert not health.collapsed()


def test_one_answer_for_all_is_a_collapse() -> None:
    health = Health(8)
    health.add(torch.eye(8)[[3] * 40], 50 * torch.eye(8)[[3] * 40])
    figures = health.figures()
    assert figures["marginal_entropy"] == pytest.approx(0, abs=1e-5)
    assert figures["divergence"] == pytest.approx(0, abs=1e-5)  # and the loss is no sign of it
    assert health.collapsed()


def test_vague_answers_are_no_collapse() -> None:
    """Uniform P has the largest entropy of both kinds."""
    health = Health(8)
    health.add(torch.full((5, 8), 1 / 8), torch.zeros(5, 8))
    figures = health.figures()
    assert figures["entropy"] == pytest.approx(math.log(8), rel=1e-5)
    assert figures["marginal_entropy"] == pytest.approx(math.log(8), rel=1e-5)


def test_figures_equal_numpy_over_several_steps() -> None:
    health, teachers, students, spreads = Health(6), [], [], []
    for n in (4, 9, 2):
        p, logits = torch.randn(n, 6).softmax(-1), torch.randn(n, 6)
        feature = torch.randn(2, 7, 5)
        health.add(p, logits, feature)
        teachers.append(p.double().numpy())
        students.append(logits.double().softmax(-1).numpy())
        vectors = feature.double().numpy().reshape(14, 5)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        spreads.append(unit.std(axis=0).mean())
    p, q = np.concatenate(teachers), np.concatenate(students)
    mean = p.mean(0)
    figures = health.figures()
    assert figures["entropy"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    assert figures["marginal_entropy"] == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-5)
    assert figures["divergence"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert figures["feature_std"] == pytest.approx(np.mean(spreads), rel=1e-5)


def test_feature_spread_at_both_ends() -> None:
    health = Health(2)
    health.add(torch.eye(2), torch.zeros(2, 2), torch.randn(1, 20_000, 16))
    assert health.figures()["feature_std"] == pytest.approx(1 / 4, rel=0.02)  # 1/√16
    health.reset()
    health.add(torch.eye(2), torch.zeros(2, 2), torch.ones(1, 100, 16))
    assert health.figures()["feature_std"] == pytest.approx(0, abs=1e-6)


def test_the_ceiling_counts_few_samples() -> None:
    health = Health(64)
    health.add(torch.eye(64)[:4], torch.zeros(4, 64))
    assert health.ceiling() == pytest.approx(math.log(4))
    assert not health.collapsed()  # 4 samples can't use 64 prototypes
    health.add(torch.eye(64), torch.zeros(64, 64))
    assert health.ceiling() == pytest.approx(math.log(64))


def test_reset_forgets_and_nothing_is_no_collapse() -> None:
    health = Health(8)
    health.add(torch.eye(8)[[3] * 40], torch.zeros(40, 8), torch.ones(1, 4, 3))
    health.reset()
    figures = health.figures()
    nothing = ("entropy", "marginal_entropy", "information", "divergence")
    assert all(math.isnan(figures[name]) for name in nothing)  # not 0, which is a collapse
    assert "feature_std" not in figures
    assert not health.collapsed()


def test_an_epoch_without_a_step_of_mod_is_no_collapse(recwarn: pytest.WarningsRecorder) -> None:
    mod = toy_components(network := ToyNetwork(), warmup_epochs=0, views={"every": 3})
    trainer = toy_trainer(network, mod)  # two steps
    trainer.run()
    names = ("token_marginal_entropy", "class_marginal_entropy", "recon_gain")
    assert all(math.isnan(trainer.state.metrics[name]) for name in names)
    assert not [warning for warning in recwarn if "MOD:" in str(warning.message)]


def test_no_masked_token_adds_nothing() -> None:
    health = Health(4)
    health.add(torch.eye(4), torch.zeros(4, 4))
    before = health.figures()
    health.add(torch.zeros(0, 4), torch.zeros(0, 4))
    assert health.figures() == before


def test_a_step_that_is_not_finite_adds_nothing() -> None:
    health, expected = Health(4), Health(4)
    good = torch.rand(3, 4).softmax(-1), torch.randn(3, 4), torch.randn(2, 5, 6)
    for part in (health, expected):
        part.add(*good)
    health.add(torch.full((3, 4), math.nan), torch.randn(3, 4), torch.randn(2, 5, 6))
    health.add(torch.eye(4), torch.full((4, 4), math.inf), torch.randn(2, 5, 6))
    assert health.figures() == expected.figures()


def brains() -> tuple[torch.Tensor, torch.Tensor]:
    """Views (2, 4, 12³) with air around a brain of another mean each, and masks of its half."""
    views = torch.randn(2, 4, 12, 12, 12) + torch.tensor([1.0, -2.0])[:, None, None, None, None]
    views[..., :3] = 0
    masks = torch.zeros(2, 1, 12, 12, 12)
    masks[:, :, :6] = 1
    return views, masks


def test_the_gain_over_a_constant_equals_numpy() -> None:
    views, masks = brains()
    guess = views + 0.3 * torch.randn_like(views)
    health = ReconstructionHealth()
    health.add(guess, views, masks)
    v, m, g = (x[..., ::3, ::3, ::3].double().numpy() for x in (views, masks, guess))
    error = constant = 0.0
    for i in range(2):
        brain, hidden = (v[i] != 0).any(0), m[i, 0] == 1
        for c in range(4):
            mean = v[i, c][brain & ~hidden].mean()
            error += np.abs(g[i, c] - v[i, c])[brain & hidden].sum()
            constant += np.abs(mean - v[i, c])[brain & hidden].sum()
    assert health.gain() == pytest.approx(1 - error / constant, rel=1e-5)
    assert 0.5 < health.gain() < 1


def test_the_gain_at_both_ends() -> None:
    views, masks = brains()
    health = ReconstructionHealth()
    health.add(views, views, masks)
    assert health.gain() == 1
    health.reset()
    assert math.isnan(health.gain())
    visible = (views != 0).any(1, keepdim=True) * (1 - masks)
    thinned = visible[..., ::3, ::3, ::3]
    mean = (views[..., ::3, ::3, ::3] * thinned).sum((2, 3, 4)) / thinned.sum((2, 3, 4))
    health.add(mean[..., None, None, None].expand_as(views), views, masks)
    assert health.gain() == pytest.approx(0, abs=1e-6)
    health.add(torch.full_like(views, math.nan), views, masks)  # not finite: left out
    assert health.gain() == pytest.approx(0, abs=1e-6)
