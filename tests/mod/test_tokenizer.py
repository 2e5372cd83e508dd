"""The Online Tokenizer's losses, centre, temperatures and warnings against NumPy."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mod_components.losses import teacher_probabilities
from mod_components.mod import EMATeacher, MODStep, OnlineTokenizer
from mod_components.mod.tokenizer import teacher_temperature
from tests.toys import ToyNetwork, toy_components, toy_trainer

CHANNELS, GRID = 8, (2, 3, 2)


def stub_tokenizer(**settings: Any) -> OnlineTokenizer:
    """A tokenizer with a built teacher whose heads differ from the student's."""
    mod = toy_components(ToyNetwork(), tokenizer=settings)
    teacher, tokenizer = mod["teacher"], mod["tokenizer"]
    assert isinstance(teacher, EMATeacher)
    assert isinstance(tokenizer, OnlineTokenizer)
    teacher.build()
    for p in teacher.copies.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return tokenizer


def stub_step(batch: int = 2) -> MODStep:
    tokens = GRID[0] * GRID[1] * GRID[2]
    mask = (torch.rand(2 * batch, tokens) < 0.6).float()
    mask[0] = 0
    mask[0, 3] = 1  # unequal numbers
    return MODStep(
        views=torch.zeros(0),
        masks=torch.zeros(0),
        student=torch.randn(2 * batch, CHANNELS, *GRID, requires_grad=True),
        token_masks=mask,
        teacher=torch.randn(2 * batch, CHANNELS, *GRID),
    )


def forget(tokenizer: OnlineTokenizer) -> None:
    """Put centres and class memory back to their start."""
    for centre in (tokenizer.token_centre, tokenizer.class_centre):
        centre.value.zero_()
    tokenizer.class_memory.mean.zero_()
    tokenizer.class_memory.variance.fill_(1)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def scores(head: nn.Module, vectors: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return head(torch.from_numpy(vectors).float()).double().numpy()


def tokens_of(feature: Tensor, sample: int) -> np.ndarray:
    """(N, C) of one sample, by a loop over places."""
    f = feature.detach().numpy()
    return np.stack([f[(sample, slice(None), *place)] for place in np.ndindex(*GRID)])


def test_losses_equal_numpy_with_explicit_views() -> None:
    tokenizer, step, batch, tau = stub_tokenizer(), stub_step(2), 2, 0.05
    tokenizer.token_centre.value.uniform_(-0.1, 0.1)
    tokenizer.class_centre.value.uniform_(-0.1, 0.1)
    token_centre = tokenizer.token_centre.value.double().numpy().copy()
    class_centre = tokenizer.class_centre.value.double().numpy().copy()
    copies = tokenizer.teacher.copies
    assert step.teacher is not None

    token_terms, p_cls, q_cls = [], {}, {}
    for v, view in enumerate(("mu", "nu")):
        per_sample = []
        for b in range(batch):
            s, t = tokens_of(step.student, v * batch + b), tokens_of(step.teacher, v * batch + b)
            p = softmax((scores(copies["token_head"], t) - token_centre) / tau)
            q = np.log(softmax(scores(tokenizer.token_head, s) / 0.1))
            m = step.token_masks[v * batch + b].numpy()
            per_sample.append(sum(m[i] * -(p[i] @ q[i]) for i in range(len(m))) / m.sum())
            p_cls[view, b] = softmax((scores(copies["class_head"], t.mean(0)) - class_centre) / tau)
            q_cls[view, b] = np.log(softmax(scores(tokenizer.class_head, s.mean(0)) / 0.1))
        token_terms.append(np.mean(per_sample))
    expected_efm = sum(token_terms) / 2
    cross = [
        np.mean([-(p_cls["nu", b] @ q_cls["mu", b]) for b in range(batch)]),
        np.mean([-(p_cls["mu", b] @ q_cls["nu", b]) for b in range(batch)]),
    ]
    same = np.mean([-(p_cls[v, b] @ q_cls[v, b]) for v in ("mu", "nu") for b in range(batch)])

    efm, cls = tokenizer.losses(step, tau)
    assert efm.item() == pytest.approx(expected_efm, rel=1e-4)
    assert cls.item() == pytest.approx(sum(cross) / 2, rel=1e-4)
    assert cls.item() != pytest.approx(same, rel=1e-3)


def test_where_a_token_lies_alone_is_no_answer() -> None:
    """Teacher's outputs that differ by position alone leave nothing to learn."""
    tokenizer = stub_tokenizer(centre_by_position=True)
    shape = tokenizer.teacher.views.feature_shape
    places = torch.randn(1, *shape).expand(4, *shape)  # the same in all crops
    masks = torch.ones(4, shape[1] * shape[2] * shape[3])
    nothing = torch.zeros(0)
    tokenizer.losses(MODStep(nothing, nothing, torch.randn(4, *shape), masks, places), 0.05)
    copies, centre = tokenizer.teacher.copies, tokenizer.token_centre.value
    targets = copies["token_head"](places.flatten(2).transpose(1, 2))
    assert centre.shape == targets.shape[1:]
    p = teacher_probabilities(targets, centre, 0.05)
    torch.testing.assert_close(p, torch.full_like(p, 1 / p.shape[-1]))
    assert stub_tokenizer().token_centre.value.shape == targets.shape[2:]


@pytest.mark.parametrize(
    ("teacher", "given", "expected"),
    [
        (0.996, {}, (0.9, 0.99)),  # the published momenta
        (0.95, {}, (0.9, 0.9)),
        (0.9, {}, (0.8, 0.8)),
        (0.0, {}, (0.0, 0.0)),
        (0.95, {"token_momentum": 0.95, "class_momentum": 0.99}, (0.95, 0.99)),
    ],
)
def test_no_teacher_outruns_its_centres(
    teacher: float, given: dict[str, float], expected: tuple[float, float]
) -> None:
    mod = toy_components(ToyNetwork(), teacher={"momentum": teacher}, tokenizer=given)
    tokenizer = mod["tokenizer"]
    found = tokenizer.token_centre.momentum, tokenizer.class_centre.momentum
    assert found == pytest.approx(expected)
    assert tokenizer.class_memory.momentum == tokenizer.class_centre.momentum


def class_gradient(step: MODStep, tokenizer: OnlineTokenizer) -> Tensor:
    student = step.student.detach().requires_grad_(True)
    renewed = MODStep(step.views, step.masks, student, step.token_masks, step.teacher)
    forget(tokenizer)
    _, cls = tokenizer.losses(renewed, 0.05)
    cls.backward()
    assert student.grad is not None
    return student.grad


def test_a_view_is_never_compared_with_itself() -> None:
    """P(μ) may be anything: what μ̂ is taught comes from ν alone."""
    tokenizer, step = stub_tokenizer(), stub_step(2)
    before = class_gradient(step, tokenizer)
    assert step.teacher is not None
    step.teacher = step.teacher.clone()
    step.teacher[:2] = 10 * torch.randn_like(step.teacher[:2])  # μ of both samples
    after = class_gradient(step, tokenizer)
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert (after[2:] - before[2:]).abs().max() > 1e-3 * before[2:].abs().max()


def test_gradients_reach_student_and_heads_but_not_the_teacher() -> None:
    tokenizer, step = stub_tokenizer(), stub_step(2)
    assert step.teacher is not None
    step.teacher.requires_grad_(True)
    efm, cls = tokenizer.losses(step, 0.05)
    (efm + cls).backward()
    assert step.teacher.grad is None
    assert all(p.grad is None for p in tokenizer.teacher.copies.parameters())
    assert step.student.grad is not None
    for name, p in tokenizer.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


def test_token_loss_alone_moves_masked_tokens_only() -> None:
    tokenizer, step = stub_tokenizer(), stub_step(2)
    efm, _ = tokenizer.losses(step, 0.05)
    efm.backward()
    assert step.student.grad is not None
    per_token = step.student.grad.flatten(2).abs().sum(1)  # (2B, N)
    assert torch.all(per_token[step.token_masks == 0] == 0)
    assert torch.all(per_token[step.token_masks == 1] > 0)


def test_centres_are_used_before_they_are_updated() -> None:
    tokenizer, step = stub_tokenizer(), stub_step(2)
    assert step.teacher is not None
    first, _ = tokenizer.losses(step, 0.05)  # with centre 0
    copies = tokenizer.teacher.copies
    tokens = np.concatenate([tokens_of(step.teacher, i) for i in range(4)])
    means = np.stack([tokens_of(step.teacher, i).mean(0) for i in range(4)])
    token_centre = scores(copies["token_head"], tokens).mean(0)
    class_centre = scores(copies["class_head"], means).mean(0)
    np.testing.assert_allclose(tokenizer.token_centre.value, token_centre, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(tokenizer.class_centre.value, class_centre, rtol=1e-4, atol=1e-7)
    second, _ = tokenizer.losses(step, 0.05)
    assert second.item() != first.item()
    tokenizer.token_centre.value.zero_()
    again, _ = tokenizer.losses(step, 0.05)
    assert again.item() == first.item()


def test_state_dict_holds_heads_and_centres_and_no_teacher() -> None:
    keys = set(stub_tokenizer().state_dict())
    assert {"token_centre.value", "class_centre.value"} <= keys
    assert {"token_head.prototypes", "class_head.prototypes"} <= keys
    assert {key.split(".")[0] for key in keys} == {
        "token_head", "class_head", "token_centre", "class_centre", "class_memory",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("done", "expected"), [(0, 0.04), (0.05, 0.055), (0.1, 0.07), (0.5, 0.07), (1, 0.07)]
)
def test_teacher_temperature_rises_over_the_first_tenth(done: float, expected: float) -> None:
    assert teacher_temperature(done, (0.04, 0.07)) == pytest.approx(expected)


def test_temperature_follows_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    mod = toy_components(ToyNetwork(), use_predictor=False)
    tokenizer = mod["tokenizer"]
    assert isinstance(tokenizer, OnlineTokenizer)
    used = []

    def losses(_step: MODStep, temperature: float) -> tuple[Tensor, Tensor]:
        used.append(temperature)
        return torch.zeros((), requires_grad=True), torch.zeros(())

    monkeypatch.setattr(tokenizer, "losses", losses)
    toy_trainer(ToyNetwork(), mod, epochs=10).run()  # 20 steps: the rise takes 2
    assert used == pytest.approx([0.04, 0.055] + [0.07] * 18)


def test_divergence_is_cross_entropy_less_entropy() -> None:
    """KL(P‖Q) of what the losses compare, at the student's temperature."""
    tokenizer, step = stub_tokenizer(), stub_step(2)
    step.token_masks = torch.zeros_like(step.token_masks)
    step.token_masks[:, ::2] = 1  # equal numbers: the mean over tokens is that over samples
    efm, cls = tokenizer.losses(step, 0.05)
    for name, loss in (("token", efm), ("class", cls)):
        figures = tokenizer.health[name].figures()
        expected = loss.item() - figures["entropy"]
        assert figures["divergence"] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("epoch", [1, 5])
def test_every_process_reduces_equally_often(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else processes that disagree about a warning would wait for each other for ever."""
    calls: list[Tensor] = []

    def count(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return tensor

    monkeypatch.setattr("mod_components.mod.health.all_reduce_mean", count)
    numbers = []
    for warned in (False, True):
        tokenizer = stub_tokenizer()
        tokenizer.health["token"].warned = warned
        collapse(tokenizer, "token")
        calls.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report(tokenizer, epoch)
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] > 0


def report(tokenizer: OnlineTokenizer, epoch: int) -> dict[str, float]:
    engine = SimpleNamespace(state=SimpleNamespace(epoch=epoch, metrics={}))
    tokenizer._report(engine)
    return engine.state.metrics


def collapse(tokenizer: OnlineTokenizer, name: str) -> None:
    k = tokenizer.health[name].prototypes
    other = "class" if name == "token" else "token"
    tokenizer.health[name].add(torch.eye(k)[[0] * 50], torch.zeros(50, k))
    k = tokenizer.health[other].prototypes
    tokenizer.health[other].add(torch.eye(k), torch.zeros(k, k))


@pytest.mark.parametrize("name", ["token", "class"])
def test_collapse_warns_by_name_once_and_only_after_warm_up(name: str) -> None:
    tokenizer = stub_tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in (1, 2):
            collapse(tokenizer, name)
            assert report(tokenizer, epoch)[f"{name}_marginal_entropy"] == pytest.approx(
                0, abs=1e-5
            )
    collapse(tokenizer, name)
    with pytest.warns(UserWarning, match=f"the {name} teacher is collapsing"):
        report(tokenizer, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collapse(tokenizer, name)
        report(tokenizer, 4)


def test_a_token_teacher_that_tells_nothing_apart_is_named_once() -> None:
    """Its marginal entropy is that of a healthy one."""
    tokenizer = stub_tokenizer()
    k = tokenizer.health["token"].prototypes
    for epoch in (1, 3, 4):
        collapse(tokenizer, "class")
        tokenizer.health["class"].warned = True
        tokenizer.health["token"].reset()
        tokenizer.health["token"].add(torch.full((50, k), 1 / k), torch.zeros(50, k))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures = report(tokenizer, epoch)
        assert figures["token_marginal_entropy"] == pytest.approx(figures["token_max_entropy"])
        told = [str(w.message) for w in caught if "tells its tokens apart by no more" in str(w)]
        assert len(told) == (epoch == 3)


def test_a_healthy_epoch_does_not_warn_and_epochs_do_not_mix() -> None:
    tokenizer = stub_tokenizer()
    tokenizer.token_centre.value.fill_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.health["token"].add(torch.eye(12), torch.zeros(12, 12))
        figures = report(tokenizer, 5)
        assert figures["token_marginal_entropy"] == pytest.approx(np.log(12), rel=1e-5)
        assert figures["token_centre_norm"] == pytest.approx(0.5 * 12**0.5, rel=1e-5)
        tokenizer.health["token"].warned = True  # for so vague an epoch has a warning of its own
        tokenizer.health["token"].add(torch.full((3, 12), 1 / 12), torch.zeros(3, 12))
        assert report(tokenizer, 6)["token_entropy"] == pytest.approx(np.log(12), rel=1e-5)


def test_figures_of_every_epoch_are_in_the_trainers_metrics() -> None:
    network = ToyNetwork()
    trainer = toy_trainer(network, toy_components(network))
    trainer.run()
    figures = trainer.state.metrics
    for name, k in (("token", 12), ("class", 6)):
        assert 0 <= figures[f"{name}_entropy"] <= np.log(k) + 1e-5
        assert figures[f"{name}_entropy"] <= figures[f"{name}_marginal_entropy"] + 1e-5
        assert figures[f"{name}_max_entropy"] == pytest.approx(np.log(k))
        assert figures[f"{name}_divergence"] >= 0
        assert figures[f"{name}_centre_norm"] > 0
    assert 0 < figures["token_feature_std"] < 1 / 8**0.5 + 1e-6
    assert "class_feature_std" not in figures


def test_half_precision_keeps_losses_and_centres_in_float32() -> None:
    tokenizer, step = stub_tokenizer(), stub_step(2)
    full = tokenizer.losses(step, 0.05)
    forget(tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer.losses(step, 0.05)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), rel=0.1)
    assert tokenizer.token_centre.value.dtype == torch.float32
    (half[0] + half[1]).backward()
    assert torch.isfinite(tokenizer.token_head.prototypes.grad).all()
