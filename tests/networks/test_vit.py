"""The ViT segmenter: MONAI's ViT, and logits at full resolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import ViTAutoEnc

from mod_components.errors import SettingsError
from mod_components.networks import Tap, ViTSegmenter

SMALL = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}


def test_published_number_of_parameters() -> None:
    count = sum(parameter.numel() for parameter in ViTSegmenter().parameters())
    assert count == pytest.approx(98.5e6, rel=0.01)


def test_equals_monais_autoencoder() -> None:
    """The same decoder as ``ViTAutoEnc``, which returns hidden states besides."""
    size = (32, 32, 48)
    network = ViTSegmenter(img_size=size, **SMALL).eval()
    monai = ViTAutoEnc(4, size, (16, 16, 16), out_channels=3, **SMALL).eval()
    renamed = {
        "conv3d_transpose": "decoder.0",
        "conv3d_transpose_1": "decoder.1",
    }
    state = {}
    for name in monai.state_dict():
        head, _, last = name.rpartition(".")
        own = f"{renamed[head]}.{last}" if head in renamed else f"vit.{name}"
        state[name] = network.state_dict()[own]
    assert len(state) == len(network.state_dict())
    monai.load_state_dict(state)
    x = torch.randn(2, 4, *size)
    with torch.no_grad():
        torch.testing.assert_close(network(x), monai(x)[0])


def test_tokens_are_at_their_own_place() -> None:
    """A transposed convolution whose stride is its width acts on each token alone."""
    network = ViTSegmenter(img_size=(32, 48, 64), **SMALL).eval()
    x = torch.randn(1, 4, 32, 48, 64)
    with torch.no_grad():
        tokens = network.vit(x)[0]  # (1, 24, 24)
        logits = network(x)
        first, second = network.decoder
        for token, place in ((0, (0, 0, 0)), (5, (0, 1, 1)), (23, (1, 2, 3))):
            block = tokens[0, token].reshape(1, -1, 1, 1, 1)
            block = F.conv_transpose3d(block, first.weight, first.bias, stride=4)
            block = F.conv_transpose3d(block, second.weight, second.bias, stride=4)
            where = tuple(slice(16 * index, 16 * index + 16) for index in place)
            torch.testing.assert_close(
                logits[(0, slice(None), *where)], block[0], rtol=1e-4, atol=1e-5
            )


def test_tap_gives_the_tokens_after_the_last_norm() -> None:
    network = ViTSegmenter(img_size=(32, 32, 48), **SMALL).eval()
    x = torch.randn(2, 4, 32, 32, 48)
    feature = Tap("vit")(network, x)
    tokens = network.vit.norm(network.vit(x)[1][-1])
    assert feature.shape == (2, 24, 2, 2, 3)
    # fast attention and patches differ by rounding
    torch.testing.assert_close(feature.flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(30, 32, 32), (32, 32), (0, 16, 16)])
def test_sizes_that_do_not_fit_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="img_size must be three multiples of 16"):
        ViTSegmenter(img_size=size, **SMALL)


def test_images_of_another_size_are_refused() -> None:
    """Also those with as many tokens, which would come out in another shape."""
    network = ViTSegmenter(img_size=(32, 32, 32), **SMALL)
    for size in ((64, 32, 16), (48, 32, 32)):
        with pytest.raises(SettingsError, match=r"img_size is \(32, 32, 32\) and got"):
            network(torch.zeros(1, 4, *size))


def test_trace() -> None:
    network = ViTSegmenter(img_size=(32, 32, 32), **SMALL).eval()
    x, y = torch.randn(2, 1, 4, 32, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(network, x)
        torch.testing.assert_close(traced(y), network(y))
