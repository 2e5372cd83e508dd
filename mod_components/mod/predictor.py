"""The Dense Predictor: reconstructs masked voxels from the encoder feature."""

from __future__ import annotations

import logging
import math
import warnings

import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.networks.utils import pixelshuffle
from torch import Tensor, nn

from mod_components.errors import SettingsError
from mod_components.losses import reconstruction_loss
from mod_components.mod.health import ReconstructionHealth
from mod_components.mod.step import MODHandler, MODStep, check_decay, loss_share
from mod_components.mod.views import MaskedViews

__all__ = ["DensePredictor"]

logger = logging.getLogger("mod_components.mod")

LARGEST_SHUFFLE = 15_000_000  # parameters of a 1x1x1 convolution in front of a pixel shuffle
DEAD_GAIN = 0.01  # of the reconstruction over a constant: below it the predictor is of no use
DEAD_STEPS = 5000  # small networks are no better for hundreds of steps (docs/reference/measured)
NARROWEST = 16  # channels of the last transposed convolution's input, at least


class DensePredictor(MODHandler):
    """Adds w · ramp · λ_DP · L_DP to the loss (MOD, Eq. 4).

    A learned position embedding is added to the student's tokens; a light decoder brings them back
    to voxels: a 1×1×1 convolution and a 3D pixel shuffle where that stays under 15 M parameters,
    else transposed convolutions of stride 2.

    Each epoch's gain over a constant goes to ``engine.state.metrics`` as ``recon_gain``; see
    :class:`~mod_components.mod.health.ReconstructionHealth`.

    Args:
        views: the handler that makes the views.
        weight: w, the weight of MOD beside the segmentation loss.
        warmup_epochs: length of the ramp.
        decay: how the weight falls until the end, one of
            :data:`~mod_components.mod.step.DECAYS`.
        strength: λ_DP.
        foreground: count only masked voxels inside the brain (air is trivially predicted).

    Raises:
        SettingsError: when the feature's stride is no power of 2 where transposed convolutions are
            needed.
    """

    NOTED = ("weight", "warmup_epochs", "decay", "strength", "foreground")

    views: MaskedViews

    def __init__(
        self,
        views: MaskedViews,
        *,
        weight: float = 1.0,
        warmup_epochs: float = 2,
        decay: str = "none",
        strength: float = 1.0,
        foreground: bool = False,
    ) -> None:
        super().__init__()
        self.refer(views=views)
        self.weight, self.warmup_epochs, self.strength = weight, warmup_epochs, strength
        self.decay = check_decay(decay)
        self.foreground = foreground
        channels, *grid = views.feature_shape
        self.stride = views.stride
        images = len(views.fill)
        self.position = nn.Parameter(torch.empty(1, channels, *grid))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.decoder = _decoder(channels, images, self.stride)
        self.health = ReconstructionHealth()
        self.warned = False
        self.to(views.fill.device)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Add the loss after the segmentation loss; report health after each epoch."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def reconstruct(self, feature: Tensor) -> Tensor:
        """Decode tokens to voxels.

        Args:
            feature: the student's feature of masked views (B, C, d, h, w).

        Returns:
            Images (B, C_in, d·stride, h·stride, w·stride).
        """
        position: Tensor = self.position
        if feature.shape[2:] != position.shape[2:]:  # a crop of another size than roi_size
            position = F.interpolate(position, feature.shape[2:], mode="trilinear")
        return self.decoder(feature + position)

    def loss(self, step: MODStep) -> Tensor:
        """Compute L_DP of both views (Eq. 4).

        Args:
            step: views, masks and the student's feature.

        Returns:
            A scalar in units of the z-scored images.
        """
        mask = step.masks
        reconstruction = self.reconstruct(step.student)
        self.health.add(reconstruction, step.views, mask)
        if self.foreground:
            mask = mask * (step.views != 0).any(dim=1, keepdim=True)
        return reconstruction_loss(reconstruction, step.views, mask)

    def _add_loss(self, engine: SupervisedTrainer) -> None:
        if engine.state.mod is None:
            return
        loss = self.loss(engine.state.mod)
        share = loss_share(engine, self.warmup_epochs, self.decay)
        factor = self.weight * share * self.strength
        engine.state.output["loss"] = engine.state.output["loss"] + factor * loss
        engine.state.output["loss_recon"] = loss.detach()

    def _report(self, engine: SupervisedTrainer) -> None:
        gain = self.health.gain()  # on every process
        self.health.reset()
        engine.state.metrics["recon_gain"] = gain
        logger.info("predictor: gain over a constant %.3f", gain)
        warm = engine.state.epoch > self.warmup_epochs and engine.state.iteration >= DEAD_STEPS
        if gain < DEAD_GAIN and warm and not self.warned:
            self.warned = True
            warnings.warn(
                f"MOD: the Dense Predictor is dead: over epoch {engine.state.epoch} its "
                f"reconstruction of masked brain was no better than a constant (gain {gain:.3f}). "
                "A low loss_recon is then no success. Try a lower mask_ratio, a longer "
                "mod_warmup_epochs or --mask_foreground true, or leave it out (--use_predictor "
                "false).",
                stacklevel=2,
            )


class _PointConv(nn.Conv3d):
    """A 1×1×1 convolution as the matrix product that it is: on the CPU much faster backward."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, d, h, w) to (B, outputs, d, h, w)."""
        tokens = F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias)
        return tokens.movedim(-1, 1)


class _PixelShuffle(nn.Module):
    """Trade channels for voxels: (B, C·s³, d, h, w) -> (B, C, d·s, h·s, w·s)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange, without parameters."""
        return pixelshuffle(x, spatial_dims=3, scale_factor=self.stride)


def _decoder(channels: int, images: int, stride: int) -> nn.Module:
    outputs = images * stride**3
    if (channels + 1) * outputs <= LARGEST_SHUFFLE:
        return nn.Sequential(_PointConv(channels, outputs), _PixelShuffle(stride))
    doublings = round(math.log2(stride))
    if 2**doublings != stride:
        raise SettingsError(
            f"tap: a feature with {channels} channels at stride {stride} needs a decoder of "
            "transposed convolutions, and those need a stride that is a power of 2."
        )
    layers: list[nn.Module] = []
    for level in range(doublings):
        width = max(NARROWEST, channels // 2)
        last = level == doublings - 1
        layers.append(nn.ConvTranspose3d(channels, images if last else width, 2, stride=2))
        if not last:
            layers += [nn.InstanceNorm3d(width, affine=True), nn.GELU()]
        channels = width
    return nn.Sequential(*layers)
