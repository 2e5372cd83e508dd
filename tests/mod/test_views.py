"""Intensity views and masks: what may change, what may not, and what they are drawn from."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from mod_components.mod import EMATeacher, MaskedViews, MODStep, OnlineTokenizer
from mod_components.mod import views as views_module
from mod_components.mod.views import _blurred, intensity_view
from tests.toys import ROI, ToyNetwork, toy_components, toy_data, toy_trainer


def rngs(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def image(seed: int = 0, size: Sequence[int] = ROI) -> Tensor:
    """(1, 4, D, H, W) with a background shell of two voxels."""
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed))
    brain = torch.zeros(1, 1, *size)
    brain[..., 2:-2, 2:-2, 2:-2] = 1
    return x * brain


def masked_views(**settings: Any) -> MaskedViews:
    return MaskedViews(ToyNetwork(), "encoder", ROI, **{"mask_cell": 4, **settings})


def test_views_differ_and_background_stays_zero() -> None:
    x = image()
    mu, nu = intensity_view(x, rngs(1)), intensity_view(x, rngs(2))
    assert (mu - nu).abs().max() > 0.05
    background = (x == 0).all(1, keepdim=True).expand_as(x)
    for seed in range(10):
        view = intensity_view(x, rngs(seed))
        assert torch.all(view[background] == 0)
        assert torch.isfinite(view).all()
        assert not torch.equal(view, x)


def test_scale_and_shift_stay_in_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blur and contrast off, a line through the voxels gives a channel's scale and shift."""
    monkeypatch.setattr(views_module, "PROBABILITY", 0.0)
    x = image()
    inside = (x != 0).any(1)[0]
    lines = []
    for seed in range(60):
        view = intensity_view(x, rngs(seed))
        for c in range(4):
            slope, offset = np.polyfit(x[0, c][inside].numpy(), view[0, c][inside].numpy(), 1)
            residual = view[0, c][inside] - (slope * x[0, c][inside] + offset)
            assert residual.abs().max() < 1e-5
            lines.append((slope, offset))
    scales, shifts = np.array(lines).T
    assert 0.9 <= scales.min() < 0.91
    assert 1.09 < scales.max() <= 1.1
    assert -0.1 <= shifts.min() < -0.09
    assert 0.09 < shifts.max() <= 0.1
    assert abs(scales.mean() - 1) < 0.02
    assert len({round(float(s), 6) for s in scales[:4]}) == 4  # each channel its own


def test_contrast_keeps_order_and_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "PROBABILITY", 1.0)
    monkeypatch.setattr(views_module, "SIGMA", (1e-3, 2e-3))  # a blur that blurs nothing
    monkeypatch.setattr(views_module, "SCALE", 0.0)
    monkeypatch.setattr(views_module, "SHIFT", 0.0)
    x = image()
    inside = (x != 0).any(1)[0]
    bent = 0.0
    for seed in range(5):
        view = intensity_view(x, rngs(seed))
        for c in range(4):
            before, after = x[0, c][inside], view[0, c][inside]
            after = after[before.argsort()]
            assert torch.all(after.diff() >= -1e-5)
            assert after[0].item() == pytest.approx(before.min().item(), abs=1e-4)
            assert after[-1].item() == pytest.approx(before.max().item(), abs=1e-4)
            bent = max(bent, (view[0, c][inside] - before).abs().max().item())
    assert bent > 0.1


def test_geometry_is_untouched() -> None:
    """Bumps at known places, one per channel, are still there after every kind of change."""
    places = [(4, 5, 6), (11, 4, 9), (7, 12, 4), (9, 9, 11)]
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    bumps = [
        torch.exp(-(grid - torch.tensor(place)[:, None, None, None]).square().sum(0) / 18)
        for place in places
    ]
    x = torch.stack(bumps)[None]
    for seed in range(20):
        view = intensity_view(x, rngs(seed))
        for channel, place in enumerate(places):
            assert np.unravel_index(int(view[0, channel].argmax()), ROI) == place


def test_a_view_is_drawn_from_its_generator_alone() -> None:
    x = torch.cat([image(0), image(1)])
    torch.manual_seed(1)
    np.random.seed(1)
    both = intensity_view(x, rngs(7, 8))
    torch.manual_seed(2)
    np.random.seed(2)
    torch.testing.assert_close(intensity_view(x[1:], rngs(8)), both[1:], rtol=0, atol=0)
    assert not torch.equal(intensity_view(x[1:], rngs(9)), both[1:])


def test_blur_is_monais_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([image(0, (16, 20, 18)), image(1, (16, 20, 18)), image(2, (16, 20, 18))])
    sigmas = [0.3, 0.0, 0.97]
    expected = [
        separable_filtering(sample[None], [gaussian_1d(torch.tensor(sigma))] * 3)[0]
        for sample, sigma in zip(x, [0.3, 1e-6, 0.97], strict=True)
    ]
    torch.testing.assert_close(_blurred(x, sigmas), torch.stack(expected))


def test_an_empty_crop_stays_empty() -> None:
    for seed in range(6):
        view = intensity_view(torch.zeros(1, 4, *ROI), rngs(seed))
        assert torch.all(view == 0)


def test_draws_depend_on_seed_step_and_sample_only() -> None:
    views = masked_views()
    x = torch.cat([image(0), image(1), image(2)])
    both, masks = views.draw(x, step=5, keys=[10, 11, 12])
    assert both.shape == (6, 4, *ROI)
    assert masks.shape == (6, 1, *ROI)
    alone, alone_mask = views.draw(x[1:2], step=5, keys=[11])
    torch.testing.assert_close(alone, both[[1, 4]], rtol=0, atol=0)  # μ of all first, then ν
    assert torch.equal(alone_mask, masks[[1, 4]])
    for other in (views.draw(x[1:2], 6, [11]), views.draw(x[1:2], 5, [13])):
        assert not torch.equal(other[0], alone)
        assert not torch.equal(other[1], alone_mask)
    assert not torch.equal(masked_views(seed=43).draw(x[1:2], 5, [11])[1], alone_mask)


def test_two_views_have_masks_of_their_own_with_the_exact_ratio() -> None:
    _, masks = masked_views().draw(image(), 1, [0])
    assert not torch.equal(masks[0], masks[1])
    assert masks.flatten(1).sum(1).tolist() == [38 * 64.0] * 2  # round(0.6 · 64 cells) of 4³ voxels


def test_drawing_leaves_the_global_random_states_alone() -> None:
    views, x = masked_views(), image()
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    views.draw(x, 1, [0])
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


class Spy:
    """Keeps the step while it lasts."""

    def __init__(self) -> None:
        self.steps: list[MODStep] = []
        self.images: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def attach(self, engine: Any) -> None:
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        self.steps.append(engine.state.mod)
        self.images.append(engine.state.output["image"].clone())


@pytest.mark.parametrize("fill", ["learnable", "zero"])
def test_student_sees_the_masked_views_and_segments_the_clean_image(fill: str) -> None:
    network = ToyNetwork()
    mod = toy_components(network, views={"fill": fill})
    views = mod["views"]
    assert isinstance(views, MaskedViews)
    views.fill.data = torch.tensor([0.5, -1.0, 2.0, 3.0]) if fill == "learnable" else views.fill
    seen: list[Tensor] = []
    network.stem.register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach().clone()))
    spy = Spy()
    data = toy_data(2)
    trainer = toy_trainer(network, mod, data=data, handlers=[spy])
    trainer.run()
    clean, masked = seen[0], seen[1]
    step = spy.steps[0]
    assert torch.equal(clean, torch.stack([case["image"] for case in data]))
    assert torch.equal(spy.images[0], clean)
    holes = step.masks.expand_as(masked).bool()
    assert torch.equal(masked[~holes], step.views[~holes])
    before = torch.tensor([0.5, -1.0, 2.0, 3.0] if fill == "learnable" else [0.0] * 4)
    assert torch.equal(masked[holes], before[None, :, None, None, None].expand_as(masked)[holes])
    assert step.student.shape == (4, 8, 4, 4, 4)
    for b, index in np.ndindex(4, 64):
        place = np.unravel_index(index, (4, 4, 4))
        assert step.token_masks[b, index] == step.masks[(b, 0, *(4 * p for p in place))]
    assert type(step.views) is Tensor  # no metadata to carry along
    assert trainer.state.mod is None  # let go of after the step
    assert (views.fill.grad is None) == (fill == "zero")
    assert views.fill.requires_grad == (fill == "learnable")


def test_one_view_a_step_and_its_class_token_from_the_clean_pass() -> None:
    network = ToyNetwork()
    mod = toy_components(network, views={"views": "one"})
    seen: list[Tensor] = []
    clean: list[Tensor] = []
    network.stem.register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach().clone()))
    network.encoder.register_forward_hook(lambda _m, _a, out: clean.append(out.detach().clone()))
    spy = Spy()
    toy_trainer(network, mod, handlers=[spy]).run()
    # segmentation, masked view, and the teacher, whose copy has the spying hook too
    assert [len(x) for x in seen] == [2, 2, 2] * 2
    both = toy_components(ToyNetwork())["views"]
    assert isinstance(both, MaskedViews)
    for index, step in enumerate(spy.steps):
        assert step.views.shape == (2, 4, *ROI)
        assert step.student.shape == (2, 8, 4, 4, 4)
        assert step.teacher is not None
        assert step.teacher.shape == (2, 8, 4, 4, 4)
        assert step.clean is not None
        assert step.clean.requires_grad
        assert torch.equal(step.clean, clean[3 * index])
        keys = [zlib.crc32(f"case_{2 * index + i}".encode()) for i in range(2)]
        drawn, masks = both.draw(spy.images[index], index + 1, keys)
        chosen = slice(2, 4) if index == 0 else slice(0, 2)  # ν in the first step, μ in the second
        torch.testing.assert_close(step.views, drawn[chosen])
        assert torch.equal(step.masks, masks[chosen])
    assert len(network.encoder._forward_hooks) == 1  # the test's own


def test_one_view_gives_the_losses_of_the_equations() -> None:
    """Eq. 1 on the one view; Eq. 2 between the clean crop (student) and the view (teacher)."""
    torch.manual_seed(0)
    network = ToyNetwork()
    mod = toy_components(network, views={"views": "one"}, use_predictor=False)
    spy = Spy()
    trainer = toy_trainer(network, mod, data=toy_data(2), handlers=[spy])
    trainer.run()
    step, tokenizer = spy.steps[0], toy_components(network, views={"views": "one"})["tokenizer"]
    assert isinstance(tokenizer, OnlineTokenizer)
    tokenizer.teacher.build()
    with torch.no_grad():
        efm, cls = tokenizer.losses(step, 0.05)
        student = tokenizer.token_head(step.student.flatten(2).transpose(1, 2))
        teacher = tokenizer.teacher.copies["token_head"](step.teacher.flatten(2).transpose(1, 2))
        p, q = (teacher / 0.05).softmax(-1), (student / 0.1).log_softmax(-1)
        entropy = -(p * q).sum(-1)
        expected = [entropy[b][step.token_masks[b] > 0].mean() for b in range(2)]
        torch.testing.assert_close(efm, torch.stack(expected).mean())
        standard = (1 + 1e-5) ** 0.5  # the memory is empty yet: mean 0, variance 1
        q = (tokenizer.class_head(step.clean.mean((2, 3, 4)) / standard) / 0.1).log_softmax(-1)
        head = tokenizer.teacher.copies["class_head"]
        p = (head(step.teacher.mean((2, 3, 4)) / standard) / 0.05).softmax(-1)
        torch.testing.assert_close(cls, -(p * q).sum(-1).mean())


@pytest.mark.parametrize("views", ["one", "two"])
def test_mod_takes_part_in_every_nth_step(views: str) -> None:
    network = ToyNetwork()
    mod = toy_components(network, views={"every": 2, "views": views})
    spy, terms = Spy(), []
    trainer = toy_trainer(network, mod, handlers=[spy], epochs=2)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: terms.append("loss_recon" in e.state.output)
    )
    trainer.run()
    assert terms == [False, True, False, True]
    assert [step is None for step in spy.steps] == [True, False, True, False]
    teacher = mod["teacher"]
    assert isinstance(teacher, EMATeacher)
    assert teacher.steps == 4  # it follows each optimizer step


def test_targets_are_not_made_in_half_precision() -> None:
    network = ToyNetwork()
    views = masked_views()
    trainer = toy_trainer(network, {"views": views}, data=toy_data(2))
    trainer.state.output = {"image": torch.stack([case["image"] for case in toy_data(2)])}
    trainer.state.batch = {"case": ["a", "b"]}
    trainer.state.iteration = 1
    with torch.autocast("cpu", torch.bfloat16):
        views._make(trainer)
    assert trainer.state.mod.views.dtype == torch.float32
    assert trainer.state.mod.student.dtype == torch.bfloat16


def test_shape_and_stride_of_the_feature() -> None:
    views = masked_views()
    assert views.feature_shape == (8, 4, 4, 4)
    assert views.stride == 4
    assert {"stem.0", "encoder"} <= views.encoder_modules
    assert "decoder" not in views.encoder_modules


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_cell": 0}, "mask_cell"),
        ({"mask_cell": 17}, "mask_cell"),
        ({"mask": "bricks"}, "bricks"),
        ({"fill": "noise"}, "noise"),
        ({"views": "three"}, "three"),
        ({"every": 0}, "every"),
        ({"every": "two"}, "every"),
        ({"every": 1.5}, "every"),
    ],
)
def test_settings_outside_their_range_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_views(**settings)


@pytest.mark.parametrize("size", [(16, 16, 18), (16, 16, 17)])
def test_crops_that_the_tap_does_not_tile_are_told(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="whole multiples"):
        MaskedViews(ToyNetwork(), "encoder", size, mask_cell=4)
