"""SegMamba: an encoder of gated convolutions and tri-orientated Mamba, a UNETR-style decoder.

Source: Xing et al. 2024, https://arxiv.org/abs/2401.13560; layer sizes as in the authors' code,
https://github.com/ge-xing/SegMamba. Written anew from the description; no CUDA extension needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mod_components.errors import SettingsError
from mod_components.networks.mamba import TriOrientatedMamba
from mod_components.settings import flag

__all__ = ["GatedSpatialConv", "SegMamba", "weigh_by_uncertainty"]

STRIDE = 16  # of the last encoder stage
GATES = ("multiplicative", "additive")


class GatedSpatialConv(nn.Module):
    """Gated spatial convolution: local context before a stage's tokens lose their neighbourhood.

    With C a convolution with instance norm and ReLU: z + C3(C3(z) · C1(z)) where the gate
    multiplies, as the paper has it, and z + C1(C3(C3(z)) + C1(z)) where it adds, as in the
    authors' code, which has one 1³ convolution more.

    Args:
        channels: C.
        gate: "multiplicative" or "additive".

    Raises:
        SettingsError: for any other gate.
    """

    def __init__(self, channels: int, gate: str = "multiplicative") -> None:
        super().__init__()
        if gate not in GATES:
            raise SettingsError(f"gate: expected one of {', '.join(GATES)}, got {gate!r}.")
        self.multiplies = gate == "multiplicative"
        self.point = _conv(channels, 1)
        if self.multiplies:
            self.local, self.merge = _conv(channels, 3), _conv(channels, 3)
        else:
            self.local = nn.Sequential(_conv(channels, 3), _conv(channels, 3))
            self.merge = _conv(channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Add local context to a feature map (B, C, D, H, W); returns the same shape."""
        local, point = self.local(z), self.point(z)
        return z + self.merge(local * point if self.multiplies else local + point)


class MambaBlock(nn.Module):
    """x + ToM(LayerNorm(x)) on the voxels of a feature map.

    Args:
        channels: C.
        state: size of the state of each channel of the Mamba layer.
        use_checkpoint: keep the input alone for the backward pass and compute the rest again; on
            the CPU for one image at a time.
    """

    def __init__(self, channels: int, state: int, use_checkpoint: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer = TriOrientatedMamba(channels, state)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """Mix the voxels of (B, C, D, H, W); returns the same shape."""
        if self.use_checkpoint and torch.is_grad_enabled() and not torch.jit.is_tracing():
            # nothing in here is random. A processor is as quick with one image at a time, and the
            # backward pass then computes, and holds, the insides of one alone
            images = x.split(1) if x.device.type == "cpu" else [x]
            mixed = [
                checkpoint(self._mix, image, use_reentrant=False, preserve_rng_state=False)
                for image in images
            ]
            return torch.cat(mixed) if len(mixed) > 1 else mixed[0]
        return self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B, D·H·W, C)
        return x + self.mixer(tokens, x.shape[2:]).view_as(x)


class Encoder(nn.Module):
    """The four stages; each halves the grid, and hands its feature to the decoder through a head.

    What goes on to the next stage is the stage's own result, not the head's.

    Args:
        in_channels: channels of the image.
        widths: channels of the stages.
        depths: Mamba blocks of the stages.
        state: size of the state of each channel of the Mamba layers.
        gate: form of the gated spatial convolutions.
        use_checkpoint: see :class:`MambaBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        state: int,
        gate: str,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        downs: list[nn.Module] = [nn.Conv3d(in_channels, widths[0], 7, stride=2, padding=3)]
        for before, width in pairwise(widths):
            norm = nn.InstanceNorm3d(before)
            downs.append(nn.Sequential(norm, nn.Conv3d(before, width, 2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(
                down,
                GatedSpatialConv(width, gate),
                *(MambaBlock(width, state, use_checkpoint) for _ in range(depth)),
            )
            for down, width, depth in zip(downs, widths, depths, strict=True)
        )
        self.outputs = nn.ModuleList(_output_head(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features of the stages.

        Args:
            x: images (B, C_in, D, H, W), sizes multiples of 16.

        Returns:
            The features (B, widths[i], D/2^(i+1), H/2^(i+1), W/2^(i+1)), finest first.
        """
        hidden = []
        for stage in self.stages:
            x = stage(x)
            hidden.append(x)
        # the deepest head first: a pass that is stopped at it has not paid for the other heads
        heads = zip(reversed(self.outputs), reversed(hidden), strict=True)
        return [head(h) for head, h in heads][::-1]


class SegMamba(nn.Module):
    """SegMamba.

    ``encoder.outputs.3`` is the module whose output is the last stage's feature
    (B, feature_sizes[3], D/16, H/16, W/16); nothing of the decoder runs before it.

    Images whose sizes are no multiples of 16 are padded with zeros behind their last voxels, and
    the logits are cropped; others are used as they are.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        feature_sizes: channels of the four encoder stages.
        depths: tri-orientated Mamba blocks in each stage.
        hidden_size: channels of the decoder's coarsest block.
        d_state: size of the state of each channel in the Mamba layers.
        gate: how the gated spatial convolution joins its branches, "multiplicative" (the paper) or
            "additive" (the authors' code).
        uncertainty: weigh the features on the three skips of the encoder's stages by
            :func:`weigh_by_uncertainty`; no parameters.
        use_checkpoint: compute what is inside the Mamba blocks again in the backward pass instead
            of keeping it: less memory for a little more time.

    Raises:
        SettingsError: for a setting outside its range.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        feature_sizes: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        hidden_size: int = 768,
        d_state: int = 16,
        gate: str = "multiplicative",
        uncertainty: bool = False,
        use_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        for name, values in (("feature_sizes", feature_sizes), ("depths", depths)):
            if len(values) != 4 or min(values) < 1:
                raise SettingsError(f"{name}: expected four numbers >= 1, got {tuple(values)}.")
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("hidden_size", hidden_size),
            ("d_state", d_state),
        ):
            if value < 1:
                raise SettingsError(f"{name}: expected a number >= 1, got {value}.")
        first, second, third, fourth = feature_sizes
        self.uncertainty = flag(uncertainty)
        self.encoder = Encoder(
            in_channels, feature_sizes, depths, d_state, gate, flag(use_checkpoint)
        )
        self.encoder1 = _basic_block(in_channels, first)
        self.encoder2 = _basic_block(first, second)
        self.encoder3 = _basic_block(second, third)
        self.encoder4 = _basic_block(third, fourth)
        self.encoder5 = _basic_block(fourth, hidden_size)
        self.decoder5 = _up_block(hidden_size, fourth)
        self.decoder4 = _up_block(fourth, third)
        self.decoder3 = _up_block(third, second)
        self.decoder2 = _up_block(second, first)
        self.decoder1 = _basic_block(first, first)
        self.out = UnetOutBlock(3, first, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            x: images (B, in_channels, D, H, W).

        Returns:
            Logits (B, out_channels, D, H, W).

        Raises:
            SettingsError: when no side of the image has more than 16 voxels: instance norm cannot
                work on the single voxel that would be left at stride 16.
        """
        size = x.shape[2:]
        if all(side <= STRIDE for side in size):
            raise SettingsError(
                f"image size (roi_size): {'x'.join(str(int(side)) for side in size)} voxels are "
                "too few for SegMamba, which needs more than 16 along one axis at least; take 32 "
                "or more along each."
            )
        padding = [-side % STRIDE for side in size]
        if any(padding):
            x = F.pad(x, [0, padding[2], 0, padding[1], 0, padding[0]])  # the last axis comes first
        logits = self._decode(x, self.encoder(x))
        return logits[..., : size[0], : size[1], : size[2]]

    def _decode(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Turn the encoder's features, finest first, and the image into logits."""
        fine, middle, coarse, deepest = features
        if self.uncertainty:
            fine, middle, coarse = map(weigh_by_uncertainty, (fine, middle, coarse))
        # a skip is computed where it is used: the full-resolution one last, as it takes most memory
        y = self.encoder5(deepest)  # (B, hidden_size, D/16, H/16, W/16)
        y = self.decoder5(y, self.encoder4(coarse))  # (B, feature_sizes[3], D/8, H/8, W/8)
        y = self.decoder4(y, self.encoder3(middle))  # (B, feature_sizes[2], D/4, H/4, W/4)
        y = self.decoder3(y, self.encoder2(fine))  # (B, feature_sizes[1], D/2, H/2, W/2)
        y = self.decoder2(y, self.encoder1(x))  # (B, feature_sizes[0], D, H, W)
        return self.out(self.decoder1(y))


def weigh_by_uncertainty(z: Tensor) -> Tensor:
    """Raise features where they are certain: z + z · (1 − u), u = −z̄ log z̄.

    z̄ is the logistic function of the mean over the channels (SegMamba's feature-level
    uncertainty, https://arxiv.org/abs/2401.13560).

    Args:
        z: a feature map (B, C, D, H, W).

    Returns:
        The weighed features, same shape.
    """
    mean = z.mean(1, keepdim=True)  # (B, 1, D, H, W)
    # logsigmoid, as the logarithm of a z̄ that has become 0 would make u a NaN
    uncertainty = -torch.sigmoid(mean) * F.logsigmoid(mean)
    return z + z * (1 - uncertainty)


def _conv(channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels, channels, kernel, padding=kernel // 2),
        nn.InstanceNorm3d(channels),
        nn.ReLU(),
    )


def _output_head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.InstanceNorm3d(channels),
        nn.Conv3d(channels, 2 * channels, 1),
        nn.GELU(),
        nn.Conv3d(2 * channels, channels, 1),
    )


def _basic_block(before: int, after: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(3, before, after, 3, 1, "instance", res_block=True)


def _up_block(before: int, after: int) -> UnetrUpBlock:
    return UnetrUpBlock(3, before, after, 3, 2, "instance", res_block=True)
