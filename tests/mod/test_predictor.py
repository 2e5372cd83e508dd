"""The Dense Predictor: Eq. 4 of both views against loops, and its two decoders."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch import Tensor, nn

from mod_components.mod import DensePredictor, MaskedViews, MODStep
from mod_components.mod import predictor as predictor_module
from mod_components.mod.predictor import _decoder
from tests.toys import ROI, ToyNetwork, toy_components, toy_data, toy_trainer


def make_predictor(**settings: Any) -> tuple[MaskedViews, DensePredictor]:
    mod = toy_components(ToyNetwork(), use_tokenizer=False, predictor=settings)
    views, predictor = mod["views"], mod["predictor"]
    assert isinstance(views, MaskedViews)
    assert isinstance(predictor, DensePredictor)
    return views, predictor


def make_step(views: MaskedViews) -> MODStep:
    x = torch.stack([case["image"] for case in toy_data(2)])
    drawn, masks = views.draw(x, 3, [1, 2])
    masks[0] = 0
    masks[0, :, :8] = 1  # unequal numbers of masked voxels
    student = torch.randn(4, 8, 4, 4, 4, requires_grad=True)
    return MODStep(drawn, masks, student, torch.zeros(0))


def naive(recon: Tensor, step: MODStep, foreground: bool) -> float:
    r, v, m = recon.detach().double().numpy(), step.views.numpy(), step.masks.numpy()
    terms = []
    for i in range(4):
        count = np.zeros(ROI, dtype=bool)
        for place in np.ndindex(*ROI):
            count[place] = m[(i, 0, *place)] == 1
            if foreground:
                count[place] &= any(v[(i, c, *place)] != 0 for c in range(4))
        terms.append(np.mean([np.abs(r[i, c][count] - v[i, c][count]) for c in range(4)]))
    mu, nu = terms[:2], terms[2:]
    return float((np.mean(mu) + np.mean(nu)) / 2)


@pytest.mark.parametrize("foreground", [False, True])
def test_loss_equals_a_loop_over_both_views(foreground: bool) -> None:
    views, predictor = make_predictor(foreground=foreground)
    step = make_step(views)
    recon = predictor.reconstruct(step.student)
    assert recon.shape == (4, 4, *ROI)
    expected = naive(recon, step, foreground)
    assert predictor.loss(step).item() == pytest.approx(expected, rel=1e-4)
    other = naive(recon, step, not foreground)
    assert predictor.loss(step).item() != pytest.approx(other, rel=1e-3)


def test_only_masked_voxels_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    views, predictor = make_predictor()
    step = make_step(views)
    recon = torch.randn(4, 4, *ROI, requires_grad=True)
    monkeypatch.setattr(predictor, "reconstruct", lambda _: recon)
    predictor.loss(step).backward()
    assert recon.grad is not None
    masked = step.masks.bool().expand_as(recon)
    assert torch.all(recon.grad[~masked] == 0)
    assert torch.all(recon.grad[masked] != 0)
    for view in range(4):
        assert recon.grad[view].abs().sum() > 0  # both views of both samples


def test_foreground_does_not_count_air(monkeypatch: pytest.MonkeyPatch) -> None:
    views, predictor = make_predictor(foreground=True)
    step = make_step(views)
    recon = torch.randn(4, 4, *ROI, requires_grad=True)
    monkeypatch.setattr(predictor, "reconstruct", lambda _: recon)
    predictor.loss(step).backward()
    assert recon.grad is not None
    air = (step.views == 0).all(1, keepdim=True).expand_as(recon)
    assert air.any()
    assert torch.all(recon.grad[air] == 0)
    counted = (step.masks.bool() & ~air[:, :1]).expand_as(recon)
    assert torch.all(recon.grad[counted] != 0)


def test_the_target_is_the_augmented_view(monkeypatch: pytest.MonkeyPatch) -> None:
    views, predictor = make_predictor()
    step = make_step(views)
    monkeypatch.setattr(predictor, "reconstruct", lambda _: step.views.clone())
    assert predictor.loss(step).item() == 0
    x = torch.stack([case["image"] for case in toy_data(2)])
    monkeypatch.setattr(predictor, "reconstruct", lambda _: torch.cat([x, x]))
    assert predictor.loss(step).item() > 0.01


def test_gradients_reach_every_parameter_and_the_student() -> None:
    views, predictor = make_predictor()
    step = make_step(views)
    predictor.loss(step).backward()
    assert step.student.grad is not None
    assert torch.all(step.student.grad.flatten(1).abs().sum(1) > 0)  # each view of each sample
    for name, p in predictor.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    assert predictor.position.shape == (1, 8, 4, 4, 4)


def test_position_embedding_is_added_to_the_tokens() -> None:
    _, predictor = make_predictor()
    feature = torch.randn(1, 8, 4, 4, 4)
    expected = predictor.decoder(feature + predictor.position)
    torch.testing.assert_close(predictor.reconstruct(feature), expected)
    assert 0.01 < predictor.position.std() < 0.03
    larger = predictor.reconstruct(torch.randn(1, 8, 5, 4, 6))  # a crop of another size
    assert larger.shape == (1, 4, 20, 16, 24)


def test_pixel_shuffle_keeps_tokens_in_their_places() -> None:
    """One token moves the voxels of its own cell and no others, in every decoder."""
    for decoder in (_decoder(6, 4, 4), _decoder(6, 4, 2)):
        decoder.eval()
        stride = 4 if decoder[0].out_channels == 256 else 2
        feature = torch.zeros(1, 6, 2, 3, 2)
        before = decoder(feature)
        assert before.shape == (1, 4, 2 * stride, 3 * stride, 2 * stride)
        feature[0, :, 1, 2, 0] = 1
        moved = (decoder(feature) - before).abs().sum(1)[0]
        expected = torch.zeros_like(moved, dtype=torch.bool)
        s = stride
        expected[s : 2 * s, 2 * s : 3 * s, 0:s] = True
        assert torch.equal(moved > 0, expected)


@pytest.mark.parametrize(
    ("channels", "stride", "kind"),
    [(768, 16, nn.Conv3d), (384, 16, nn.Conv3d), (256, 32, nn.ConvTranspose3d)],
)
def test_decoder_stays_light(channels: int, stride: int, kind: type[nn.Module]) -> None:
    """1×1×1 convolution and pixel shuffle under 15 M parameters, else transposed convolutions."""
    with torch.device("meta"):
        decoder = _decoder(channels, 4, stride)
    count = sum(p.numel() for p in decoder.parameters())
    assert isinstance(decoder[0], kind)
    assert count < 15_000_000
    if kind is nn.Conv3d:
        assert count == (channels + 1) * 4 * stride**3


def test_transposed_decoder_reaches_the_voxels() -> None:
    decoder = _decoder(512, 4, 32)
    assert not any(isinstance(m, nn.Conv3d) for m in decoder)
    assert decoder(torch.randn(1, 512, 1, 2, 1)).shape == (1, 4, 32, 64, 32)
    with pytest.raises(ValueError, match="power of 2"):
        _decoder(512, 4, 24)


def test_half_precision_gives_a_float32_loss() -> None:
    views, predictor = make_predictor()
    step = make_step(views)
    full = predictor.loss(step).item()
    with torch.autocast("cpu", torch.bfloat16):
        half = predictor.loss(step)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.02)


def dead_warnings(network: ToyNetwork, mod: dict[str, Any], **settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        toy_trainer(network, mod, **settings).run()
    return [str(w.message) for w in caught if "Dense Predictor is dead" in str(w.message)]


def smooth_data() -> list[dict[str, Any]]:
    """Brains of which a masked part can be told from the rest: one pattern, turned up and down."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    pattern = torch.cat([grid, grid.sum(0, keepdim=True)])
    cases = toy_data(4)
    return [{**case, "image": pattern * (1 + 0.3 * i)} for i, case in enumerate(cases)]


def test_a_dead_predictor_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "DEAD_STEPS", 6)
    network = ToyNetwork()
    mod: dict[str, Any] = toy_components(network, use_tokenizer=False, warmup_epochs=1)
    mod["predictor"].decoder.requires_grad_(False)
    for parameter in mod["predictor"].decoder.parameters():
        parameter.data.zero_()
    (message,) = dead_warnings(network, mod, epochs=5)
    assert "over epoch 3" in message  # two steps an epoch: the first that is judged
    assert "--use_predictor false" in message


def test_one_that_learns_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "DEAD_STEPS", 80)
    network = ToyNetwork()
    mod: dict[str, Any] = toy_components(network, use_tokenizer=False, warmup_epochs=1)
    gains: list[float] = []
    assert dead_warnings(network, mod, epochs=60, data=smooth_data(), handlers=[Gains(gains)]) == []
    assert gains[-1] > 0.2


class Gains:
    """Keeps ``recon_gain`` of each epoch."""

    def __init__(self, gains: list[float]) -> None:
        self.gains = gains

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        self.gains.append(engine.state.metrics["recon_gain"])


def test_point_convolution_is_a_convolution() -> None:
    torch.manual_seed(0)
    ours = predictor_module._PointConv(5, 7)
    theirs = nn.Conv3d(5, 7, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 3, 4, 2)
    torch.testing.assert_close(ours(x), theirs(x))
