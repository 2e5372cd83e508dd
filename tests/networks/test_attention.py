"""Fast attention beside MONAI's own layers, and what is left of it afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from mod_components.networks import attention, overrides
from mod_components.networks.attention import fast_attention

WINDOWS, TOKENS, CHANNELS, HEADS = 6, 27, 12, 3


def window_attention(**settings: float) -> WindowAttention:
    torch.manual_seed(0)
    return WindowAttention(CHANNELS, HEADS, (3, 3, 3), qkv_bias=True, **settings)


def shift_mask(images: int) -> Tensor:
    """Of half of the windows of an image (nW, n, n): some pairs of tokens do not see each other."""
    windows = WINDOWS // images
    apart = torch.rand(windows, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.3
    return torch.where(apart, -100.0, 0.0)


def gradients(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of all parameters, for a loss that is not linear."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = run(x)
    y.square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [1, 2 * HEADS * TOKENS**2, 2**22])
def test_windows_give_monais_numbers(
    masked: bool, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention._SCORES, "cpu", scores)
    layer, mask = window_attention(), shift_mask(images=2) if masked else None
    x = torch.randn(WINDOWS, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
    expected = gradients(layer, lambda y: layer(y, mask), x)
    with fast_attention(layer):
        found = gradients(layer, lambda y: layer(y, mask), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), fast_attention(layer):
        torch.testing.assert_close(layer(x, mask), expected[0])


def test_windows_in_half_precision() -> None:
    """bfloat16 as autocast has it: within its rounding of float32."""
    layer, mask = window_attention(), shift_mask(images=1)
    x = torch.randn(WINDOWS, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
    expected = gradients(layer, lambda y: layer(y, mask), x)

    def run(y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), fast_attention(layer):
            return layer(y, mask).float()

    for a, b in zip(gradients(layer, run, x), expected, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm()


def test_no_scores_are_kept() -> None:
    layer = window_attention()
    x = torch.randn(WINDOWS, TOKENS, CHANNELS, requires_grad=True)

    def largest() -> int:
        sizes: list[int] = []
        pack = lambda t: (sizes.append(t.numel()), t)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(x, None)
        return max(sizes)

    scores = WINDOWS * HEADS * TOKENS**2
    assert largest() == scores
    with fast_attention(layer):
        assert largest() < scores


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_vit_blocks(training: bool, rate: float) -> None:
    torch.manual_seed(0)
    block = SABlock(CHANNELS, HEADS, dropout_rate=rate).train(training)
    x = torch.randn(2, 8, CHANNELS, generator=torch.Generator().manual_seed(1))

    def run(y: Tensor) -> Tensor:
        torch.manual_seed(7)  # of the dropout, which must be MONAI's own
        return block(y)

    expected = gradients(block, run, x)
    with fast_attention(block):
        assert block.use_flash_attention == (rate == 0 or not training)
        found = gradients(block, run, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not block.use_flash_attention
    assert block.dropout_rate == rate


def test_attention_dropout_stays_monais() -> None:
    layer = window_attention(attn_drop=0.5).train()
    with fast_attention(layer):
        assert "forward" not in vars(layer)
    with fast_attention(layer.eval()):
        assert "forward" in vars(layer)


def test_layers_are_as_before_after_an_error() -> None:
    model = nn.Sequential(SABlock(CHANNELS, HEADS), window_attention())
    before = [dict(vars(layer)) for layer in model]
    with pytest.raises(RuntimeError, match="stop"), fast_attention(model), fast_attention(model):
        raise RuntimeError("stop")
    for layer, variables in zip(model, before, strict=True):
        assert vars(layer).keys() - {overrides.KEPT} == variables.keys()
        assert vars(layer).get("use_flash_attention") == variables.get("use_flash_attention")
