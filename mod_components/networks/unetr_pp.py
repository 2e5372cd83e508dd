"""UNETR++, a segmenter whose encoder and decoder attend over tokens and over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock
from torch import Tensor, nn

from mod_components.errors import SettingsError
from mod_components.networks.sizes import check_image, checked_size
from mod_components.settings import flag

__all__ = ["EPA", "UNETRPP"]

_STRIDES = (4, 8, 16, 32)  # of the four stages, in voxels
_PROJECTED_TOKENS = (64, 64, 64, 32)  # P of the four stages


class EPA(nn.Module):
    """Efficient paired attention: one pair of queries and keys, used over channels and over tokens.

    Per head, with Q and K of N tokens × d channels, hats for columns of unit length (over tokens),
    and the projection E of N × P::

        channel = V_c softmax(t₁ Q̂ᵀK̂)ᵀ          (N × d)
        spatial = softmax(t₂ Q̂ (EᵀK)ᵀ) (EᵀV_s)   (N × d)

    The output is their sum, heads side by side along the channels. E projects K as it is before its
    normalisation, as in the published code.

    Source: UNETR++, Shaker et al., https://arxiv.org/abs/2212.04497.

    Args:
        tokens: N.
        channels: C = heads · d.
        projected_tokens: P, to how many tokens the spatial branch's keys and values are reduced.
        num_heads: number of heads.
        dropout_rate: of the attention weights of both branches.
        scrambled: merge the spatial branch's heads as the published code does, which mixes tokens
            and channels up; for comparison only.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        projected_tokens: int,
        num_heads: int,
        dropout_rate: float = 0.1,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scrambled = scrambled
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.temperature2 = nn.Parameter(torch.ones(num_heads, 1, 1))
        bound = 1 / math.sqrt(projected_tokens)
        self.projection = nn.Parameter(torch.empty(tokens, projected_tokens))
        nn.init.uniform_(self.projection, -bound, bound)
        self.channel_dropout = nn.Dropout(dropout_rate)
        self.spatial_dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: tokens (B, N, C).

        Returns:
            (B, N, C).
        """
        qkvv = self.qkvv(x).unflatten(-1, (4, self.num_heads, -1))  # (B, N, 4, heads, d)
        q, k, v_channel, v_spatial = qkvv.permute(2, 0, 3, 4, 1).unbind(0)  # (B, heads, d, N) each
        k_projected = k @ self.projection  # (B, heads, d, P)
        v_projected = v_spatial @ self.projection  # (B, heads, d, P)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)

        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)  # (B, heads, d, d)
        channel = self.channel_dropout(weights) @ v_channel  # (B, heads, d, N)
        channel = channel.permute(0, 3, 1, 2).flatten(2)  # (B, N, C)

        weights = (q.transpose(-2, -1) @ k_projected * self.temperature2).softmax(dim=-1)
        # weights: (B, heads, N, P)
        spatial = self.spatial_dropout(weights) @ v_projected.transpose(-2, -1)  # (B, heads, N, d)
        if self.scrambled:
            # by way of (B, d, heads, N), whose rows of C values are not those of one token
            return channel + spatial.permute(0, 3, 1, 2).reshape(x.shape)
        return channel + spatial.transpose(1, 2).flatten(2)  # (B, N, C)


class _EPABlock(nn.Module):
    """EPA and a convolutional block, each with a path around it, on a feature map of fixed size."""

    def __init__(
        self,
        tokens: int,
        channels: int,
        projected_tokens: int,
        num_heads: int,
        dropout_rate: float,
        scrambled: bool,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.epa = EPA(tokens, channels, projected_tokens, num_heads, dropout_rate, scrambled)
        self.residual = UnetResBlock(3, channels, channels, 3, 1, norm_name="batch")
        self.dropout = nn.Dropout3d(dropout_rate)
        self.pointwise = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        tokens = x.flatten(2).transpose(1, 2) + self.position  # (B, N, C)
        tokens = tokens + self.gamma * self.epa(self.norm(tokens))
        x = tokens.transpose(1, 2).reshape(x.shape)  # (B, C, D, H, W)
        return x + self.pointwise(self.dropout(self.residual(x)))


class _Encoder(nn.Module):
    """Four stages, each a strided convolution and EPA blocks; ``stages.3`` gives 1/32."""

    def __init__(
        self, in_channels: int, hidden_dims: Sequence[int], stages: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        layers = []
        for i, dim in enumerate(hidden_dims):
            entering, stride = (hidden_dims[i - 1], 2) if i else (in_channels, 4)
            # as many groups as channels that enter, where that divides those that leave
            layers.append(
                nn.Sequential(
                    nn.Conv3d(entering, dim, stride, stride=stride, bias=False),
                    nn.GroupNorm(math.gcd(entering, dim), dim),
                )
            )
        self.downsample = nn.ModuleList(layers)
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            # in the encoder alone: the published decoder keeps torch's own start
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image (B, C_in, D, H, W) to the four stages' features, finest first."""
        features = []
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features


class _UpBlock(nn.Module):
    """Upsampling by a transposed convolution, the encoder's feature added, then a block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, block: nn.Module) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(
            in_channels, out_channels, stride, stride=stride, bias=False
        )
        self.block = block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, C_in, d, h, w) and the skip (B, C_out, D, H, W) to the skip's shape."""
        return self.block(self.upsample(x) + skip)


class UNETRPP(nn.Module):
    """UNETR++ without deep supervision.

    The feature at 1/32 of the image is the output of ``encoder.stages.3``, (B, 256, d, h, w).
    Batch norm cannot train on one value per channel: images of 32³ voxels need a batch of two.

    Source: UNETR++, Shaker et al., https://arxiv.org/abs/2212.04497, the variant for BraTS in
    https://github.com/Amshaker/unetr_plus_plus, with the heads merged in their right order.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        img_size: (D, H, W) in voxels, each a multiple of 32; the network fits this size alone.
        feature_size: channels at full resolution.
        hidden_dims: channels of the stages at 1/4, 1/8, 1/16 and 1/32; multiples of the heads.
        depths: EPA blocks of each stage; the decoder has as many at the same resolution.
        num_heads: heads of every attention.
        dropout_rate: of the attention weights, and of the channels in each EPA block.
        scrambled: merge heads as the published code does (see :class:`EPA`); comparison only.

    Raises:
        SettingsError: for a setting outside its range.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        img_size: Sequence[int] = (128, 128, 128),
        feature_size: int = 16,
        hidden_dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 4,
        *,
        dropout_rate: float = 0.1,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        self.img_size = checked_size(img_size, 32)
        _check_at_least_one(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            num_heads=num_heads,
        )
        _check_stages(hidden_dims, depths, num_heads)
        if not 0 <= dropout_rate < 1:
            raise SettingsError(f"dropout_rate must be at least 0 and below 1, got {dropout_rate}.")
        scrambled = flag(scrambled)

        def stage(i: int) -> nn.Sequential:
            tokens = math.prod(size // _STRIDES[i] for size in self.img_size)
            sizes = (tokens, hidden_dims[i], _PROJECTED_TOKENS[i], num_heads)
            blocks = (_EPABlock(*sizes, dropout_rate, scrambled) for _ in range(depths[i]))
            return nn.Sequential(*blocks)

        self.encoder = _Encoder(in_channels, hidden_dims, [stage(i) for i in range(4)])
        self.encoder1 = _full_resolution_block(in_channels, feature_size)
        ups = [_UpBlock(hidden_dims[i + 1], hidden_dims[i], 2, stage(i)) for i in (2, 1, 0)]
        last = _full_resolution_block(feature_size, feature_size)
        self.decoders = nn.ModuleList([*ups, _UpBlock(hidden_dims[0], feature_size, 4, last)])
        self.out = UnetOutBlock(3, feature_size, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Segment.

        Args:
            x: images (B, C_in, D, H, W) of ``img_size`` voxels.

        Returns:
            Logits (B, C_out, D, H, W).

        Raises:
            SettingsError: for images of another size.
        """
        check_image(x, self.img_size)
        *skips, x_up = self.encoder(x)
        # after the encoder, so that a pass that ends at the encoder's feature does not pay for it
        skips.insert(0, self.encoder1(x))
        for decoder in self.decoders:
            x_up = decoder(x_up, skips.pop())
        return self.out(x_up)


def _full_resolution_block(in_channels: int, out_channels: int) -> UnetResBlock:
    return UnetResBlock(3, in_channels, out_channels, 3, 1, norm_name="instance")


def _check_at_least_one(**settings: int) -> None:
    for name, number in settings.items():
        if number < 1:
            raise SettingsError(f"{name} must be at least 1, got {number}.")


def _check_stages(hidden_dims: Sequence[int], depths: Sequence[int], num_heads: int) -> None:
    if len(hidden_dims) != 4 or any(dim < 1 or dim % num_heads for dim in hidden_dims):
        raise SettingsError(
            f"hidden_dims must be four multiples of num_heads ({num_heads}), got {hidden_dims}."
        )
    if len(depths) != 4 or any(depth < 1 for depth in depths):
        raise SettingsError(f"depths must be four numbers of at least 1, got {depths}.")
