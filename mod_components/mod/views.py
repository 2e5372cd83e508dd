"""Two masked intensity views of each batch, and the student's pass over them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn

from mod_components.data.unlabelled import UNLABELLED, UNLABELLED_KEY
from mod_components.errors import SettingsError
from mod_components.mod.masking import cells_to_voxels, draw_masks, voxels_to_tokens
from mod_components.mod.step import MODHandler, MODStep, as_plain_tensor, sample_keys
from mod_components.networks import Tap

__all__ = ["MaskedViews", "intensity_view"]

SCALE = 0.1
SHIFT = 0.1
SIGMA = (0.25, 1.0)  # of the blur, in voxels
GAMMA = (0.8, 1.25)  # of the contrast
PROBABILITY = 0.5  # of blur and of contrast, each


def intensity_view(x: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Draw an intensity view: blur, contrast, scale 1 ± 0.1 and shift 0 ± 0.1 (method, step 2).

    Geometry is untouched, so labels and tokens of two views stay aligned. Background, exactly 0 in
    every channel, stays 0.

    Args:
        x: z-scored images (B, C, D, H, W).
        rngs: a generator for each sample.

    Returns:
        The view (B, C, D, H, W).
    """
    foreground = (x != 0).any(dim=1, keepdim=True)  # (B, 1, D, H, W)
    samples = []
    for sample, brain, rng in zip(x, foreground, rngs, strict=True):
        scale = rng.uniform(1 - SCALE, 1 + SCALE, size=x.shape[1])
        shift = rng.uniform(-SHIFT, SHIFT, size=x.shape[1])
        sigma, gamma = rng.uniform(*SIGMA), rng.uniform(*GAMMA)
        blur, contrast = rng.random(2) < PROBABILITY
        if blur:
            kernel = gaussian_1d(torch.tensor(sigma, dtype=x.dtype, device=x.device))
            sample = separable_filtering(sample[None], [kernel] * 3)[0]
        if contrast:
            sample = _gamma(sample, brain, gamma)
        per_channel = x.new_tensor(np.stack([scale, shift]))[:, :, None, None, None]
        samples.append((sample * per_channel[0] + per_channel[1]) * brain)
    return torch.stack(samples)


def _gamma(sample: Tensor, brain: Tensor, gamma: float) -> Tensor:
    """Apply x^gamma on each channel's range inside the brain."""
    inside = torch.where(brain, sample, torch.nan).flatten(1)  # (C, D*H*W)
    low = torch.nan_to_num(inside, nan=torch.inf).amin(1)[:, None, None, None]
    high = torch.nan_to_num(inside, nan=-torch.inf).amax(1)[:, None, None, None]
    width = (high - low).clamp(min=1e-6)
    bent = ((sample - low) / width).clamp(0, 1) ** gamma * width + low
    return torch.where(brain, bent, sample)  # an empty brain leaves low = inf, used nowhere


class MaskedViews(MODHandler):
    """Makes μ, ν and their masks after the trainer's forward pass and runs the student on them.

    Unlabelled crops that the batch brings along (``unlabelled`` and ``unlabelled_key``, see
    :class:`~mod_components.data.WithUnlabelled`) stand behind the batch's own: from here on B
    counts both, and MOD's losses are means over both.

    The result is left in ``engine.state.mod`` (a :class:`~mod_components.mod.step.MODStep`).
    Masks and views are drawn from (seed, step, sample), so that they depend neither on the number
    of processes nor on the process's random state.

    Args:
        network: the network in training, wrapped for several processes or not.
        tap: dotted name of the module whose output is the encoder feature.
        roi_size: (D, H, W) of the training crops in voxels.
        layer_norm: see :class:`~mod_components.networks.Tap`.
        mask_ratio: share of cells that are masked.
        mask_cell: edge g of a mask cell in voxels.
        mask: ``"blockwise"`` or ``"random"``.
        fill: value of masked voxels: ``"learnable"`` (one a channel, initially 0) or ``"zero"``.
        channels: number of image channels.
        seed: with the step and the sample, the source of all randomness here.
        device: where the crops will be.

    Attributes:
        feature_shape: (C, d, h, w) of the encoder feature at ``roi_size``.
        stride: voxels a token spans in each direction.
        encoder_modules: names of the network's modules that the feature depends on.

    Raises:
        SettingsError: for settings outside their range, or a tap that the network does not have.
    """

    network: nn.Module
    tap: Tap

    def __init__(
        self,
        network: nn.Module,
        tap: str,
        roi_size: Sequence[int],
        *,
        layer_norm: bool = False,
        mask_ratio: float = 0.6,
        mask_cell: int = 16,
        mask: str = "blockwise",
        fill: str = "learnable",
        channels: int = 4,
        seed: int = 42,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise SettingsError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}.")
        if mask_cell < 1 or mask_cell > min(roi_size):
            raise SettingsError(
                f"mask_cell must lie between 1 and {min(roi_size)}, got {mask_cell}."
            )
        if mask not in ("blockwise", "random"):
            raise SettingsError(f"mask must be 'blockwise' or 'random', got {mask!r}.")
        if fill not in ("learnable", "zero"):
            raise SettingsError(f"fill must be 'learnable' or 'zero', got {fill!r}.")
        self.refer(network=network, tap=Tap(tap, layer_norm))
        self.mask_ratio, self.mask_cell, self.mask = mask_ratio, mask_cell, mask
        self.seed = seed
        self.fill = nn.Parameter(torch.zeros(channels), requires_grad=fill == "learnable")
        probe = torch.zeros(1, channels, *roi_size, device=device)
        shape, self.encoder_modules = self.tap.probe(network, probe)
        self.feature_shape: tuple[int, ...] = shape
        self.stride = _stride(roi_size, shape[1:])
        self.to(device)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Make views after each forward pass, and let go of them after the step."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._make)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._release)

    def draw(self, x: Tensor, step: int, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw both views and both masks.

        Args:
            x: images (B, C, D, H, W).
            step: number of the training step.
            keys: a number for each sample.

        Returns:
            Views (2B, C, D, H, W) and masks over voxels (2B, 1, D, H, W), μ first, then ν.
        """
        views, masks = [], []
        for view in range(2):
            rngs = [np.random.default_rng([self.seed, step, key, view]) for key in keys]
            masks.append(draw_masks(rngs, x.shape[2:], self.mask_cell, self.mask_ratio, self.mask))
            views.append(intensity_view(x, rngs))
        cells = torch.cat(masks).to(x.device)  # (2B, 1, gd, gh, gw)
        return torch.cat(views), cells_to_voxels(cells, self.mask_cell, x.shape[2:])

    def _make(self, engine: SupervisedTrainer) -> None:
        x = as_plain_tensor(engine.state.output["image"]).detach()  # (B, C, D, H, W)
        keys = sample_keys(engine, len(x))
        if (unlabelled := _unlabelled(engine, x)) is not None:
            x, keys = torch.cat([x, unlabelled[0]]), keys + unlabelled[1]
        with torch.autocast(x.device.type, enabled=False):  # targets stay in full precision
            views, masks = self.draw(x, engine.state.iteration, keys)
        # (2B, C, D, H, W): μ̂ = μ (1 − M) + fill M
        masked = views * (1 - masks) + self.fill[:, None, None, None] * masks
        student = self.tap(self.network, masked)
        engine.state.mod = MODStep(
            views=views,
            masks=masks,
            student=student,
            token_masks=voxels_to_tokens(masks, student.shape[2:]),
        )

    @staticmethod
    def _release(engine: SupervisedTrainer) -> None:
        engine.state.mod = None


def _unlabelled(engine: SupervisedTrainer, x: Tensor) -> tuple[Tensor, list[int]] | None:
    """Unlabelled crops (U, C, D, H, W) of the batch, and a number for each, if there are any."""
    batch = engine.state.batch
    if not isinstance(batch, dict) or UNLABELLED not in batch:
        return None
    crops = as_plain_tensor(batch[UNLABELLED]).to(x).flatten(0, 1)  # (B, R, C, D, H, W)
    before: Counter[int] = Counter()
    keys = []
    for key in batch[UNLABELLED_KEY].flatten().tolist():
        # two crops of a case differ, and so do a case's labelled and unlabelled crops
        keys.append(zlib.crc32(b"unlabelled%d" % before[key], key))
        before[key] += 1
    return crops, keys


def _stride(roi_size: Sequence[int], grid: Sequence[int]) -> int:
    strides = {size // cells for size, cells in zip(roi_size, grid, strict=True)}
    fits = all(size % cells == 0 for size, cells in zip(roi_size, grid, strict=True))
    if len(strides) != 1 or not fits:
        raise SettingsError(
            f"roi_size {tuple(roi_size)} gives a feature of {tuple(grid)} tokens: choose crops "
            "whose sides are whole multiples of the tap's stride."
        )
    return strides.pop()
