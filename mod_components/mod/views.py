"""Two masked intensity views of each batch, and the student's pass over them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from mod_components.data.unlabelled import UNLABELLED, UNLABELLED_KEY
from mod_components.errors import SettingsError
from mod_components.mod.masking import cells_to_voxels, draw_masks, voxels_to_tokens
from mod_components.mod.step import MODHandler, MODStep, as_plain_tensor, sample_keys
from mod_components.networks import Tap, probe_tap
from mod_components.settings import whole_number

__all__ = ["MaskedViews", "intensity_view", "unlabelled_crops"]

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
    brain = (x != 0).any(dim=1, keepdim=True)  # (B, 1, D, H, W)
    sigmas, gammas, lines = [], [], []
    for rng in rngs:
        lines.append([rng.uniform(1 - SCALE, 1 + SCALE, size=x.shape[1])])
        lines[-1].append(rng.uniform(-SHIFT, SHIFT, size=x.shape[1]))
        sigma, gamma = rng.uniform(*SIGMA), rng.uniform(*GAMMA)
        blur, contrast = rng.random(2) < PROBABILITY
        sigmas.append(sigma if blur else 0.0)
        gammas.append(gamma if contrast else 1.0)
    view = _contrasted(_blurred(x, sigmas), brain, gammas)
    scale, shift = x.new_tensor(np.array(lines)).unbind(1)  # (B, C) each
    view = view * scale[..., None, None, None] + shift[..., None, None, None]
    return view.mul_(brain)


def _blurred(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur samples whose σ is not 0 by a Gaussian, truncated at 4 σ, zeros around the image.

    A product with a banded matrix for each direction: one call for all samples, whatever their σ,
    and on the CPU much faster than a convolution of four channels.
    """
    chosen = [index for index, sigma in enumerate(sigmas) if sigma > 0]
    if not chosen:
        return x
    sigma = x.new_tensor([sigmas[index] for index in chosen])[:, None, None]  # (b, 1, 1)
    y = x[chosen]
    for axis in (2, 3, 4):
        length = x.shape[axis]
        place = torch.arange(length, device=x.device, dtype=x.dtype)
        away = place[:, None] - place  # (L, L)
        # the Gaussian's share of each voxel, as MONAI's gaussian_1d has it
        edges = [torch.erf((away + half) / (sigma * 2**0.5)) for half in (0.5, -0.5)]
        tail = (4 * sigma + 0.5).floor().clamp(min=1)
        band = torch.where(away.abs() <= tail, (edges[0] - edges[1]) / 2, 0)  # (b, L, L)
        y = torch.einsum("bij,b...j->b...i", band, y.movedim(axis, -1)).movedim(-1, axis)
    out = x.clone()
    out[chosen] = y
    return out


def _contrasted(x: Tensor, brain: Tensor, gammas: Sequence[float]) -> Tensor:
    """Apply x^gamma on each channel's range inside the brain to samples whose gamma is not 1."""
    chosen = [index for index, gamma in enumerate(gammas) if gamma != 1]
    if not chosen:
        return x
    gamma = x.new_tensor([gammas[index] for index in chosen])[:, None, None, None, None]
    y, inside = x[chosen], brain[chosen]
    # an empty brain leaves infinities, used nowhere
    low = y.masked_fill(~inside, torch.inf).amin((2, 3, 4), keepdim=True)
    high = y.masked_fill(~inside, -torch.inf).amax((2, 3, 4), keepdim=True)
    width = (high - low).clamp(min=1e-6)
    bent = ((y - low) / width).clamp(0, 1).pow(gamma) * width + low
    out = x.clone()
    out[chosen] = torch.where(inside, bent, y)
    return out


class MaskedViews(MODHandler):
    """Makes μ, ν and their masks after the trainer's forward pass and runs the student on them.

    Unlabelled crops that the batch brings along (``unlabelled`` and ``unlabelled_key``, see
    :class:`~mod_components.data.WithUnlabelled`) stand behind the batch's own: from here on B
    counts both, and MOD's losses are means over both.

    The result is left in ``engine.state.mod`` (a :class:`~mod_components.mod.step.MODStep`).
    Masks and views are drawn from (seed, step, sample), so that they depend neither on the number
    of processes nor on the process's random state.

    With ``views="one"`` a step makes one view only, μ and ν in turn: the student runs on its masked
    form, for tokens and pixels; the class token is that of the segmentation's own pass, unmasked.

    Args:
        network: the network in training, wrapped for several processes or not.
        tap: dotted name of the module whose output is the encoder feature.
        roi_size: (D, H, W) of the training crops in voxels.
        layer_norm: see :class:`~mod_components.networks.Tap`.
        mask_ratio: share of cells that are masked.
        mask_cell: edge g of a mask cell in voxels.
        mask: ``"blockwise"`` or ``"random"``.
        fill: value of masked voxels: ``"learnable"`` (one a channel, initially 0) or ``"zero"``.
        views: ``"two"``, as the method has it, or ``"one"``.
        every: MOD takes part in every n-th step. The trainer must set gradients to None
            (``optim_set_to_none``), or the optimizer goes on moving MOD's parameters in the others.
        use_checkpoint: see :class:`~mod_components.networks.Tap`.
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

    NOTED = ("views", "every", "mask", "mask_ratio", "mask_cell")

    network: nn.Module
    tap: Tap
    _listening: ExitStack
    _heard: list[Any]

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
        views: str = "two",
        every: int | str = 1,
        use_checkpoint: bool = False,
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
        if views not in ("two", "one"):
            raise SettingsError(f"views must be 'two' or 'one', got {views!r}.")
        self.refer(network=network, tap=Tap(tap, layer_norm, use_checkpoint))
        self.views, self.every = views, whole_number("every", every, 1)
        self.refer(_listening=ExitStack(), _heard=[])
        self.mask_ratio, self.mask_cell, self.mask = mask_ratio, mask_cell, mask
        self.seed = seed
        self.fill = nn.Parameter(torch.zeros(channels), requires_grad=fill == "learnable")
        size = (1, channels, *roi_size)
        shape, self.encoder_modules = probe_tap(network, self.tap, size, device)
        self.feature_shape: tuple[int, ...] = shape
        self.stride = _stride(roi_size, shape[1:])
        self.to(device)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Make views after each forward pass, and let go of them after the step."""
        if self.views == "one":
            engine.add_event_handler(Events.ITERATION_STARTED, self._listen)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._make)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._release)

    def draw(self, x: Tensor, step: int, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw the step's views and masks.

        Args:
            x: images (B, C, D, H, W).
            step: number of the training step.
            keys: a number for each sample.

        Returns:
            Views (2B, C, D, H, W) and masks over voxels (2B, 1, D, H, W), μ first, then ν; with
            ``views="one"`` those of μ or ν alone, in turn.
        """
        chosen = (0, 1) if self.views == "two" else (step // self.every % 2,)
        rngs = [
            np.random.default_rng([self.seed, step, key, view]) for view in chosen for key in keys
        ]
        masks = draw_masks(rngs, x.shape[2:], self.mask_cell, self.mask_ratio, self.mask)
        views = intensity_view(torch.cat([x] * len(chosen)), rngs)
        return views, cells_to_voxels(masks.to(x.device), self.mask_cell, x.shape[2:])

    def _takes_part(self, engine: SupervisedTrainer) -> bool:
        return engine.state.iteration % self.every == 0

    def _listen(self, engine: SupervisedTrainer) -> None:
        self._listening.close()  # of a step that ended in an error
        if self._takes_part(engine):
            heard = self._listening.enter_context(self.tap.listening(self.network))
            self.refer(_heard=heard)

    def _make(self, engine: SupervisedTrainer) -> None:
        self._listening.close()
        if not self._takes_part(engine):
            return
        x = as_plain_tensor(engine.state.output["image"]).detach()  # (B, C, D, H, W)
        clean = None
        if self.views == "one":
            clean = self.tap.as_feature(self._heard.pop(), x.shape[2:])
        keys = sample_keys(engine, len(x))
        if (unlabelled := unlabelled_crops(engine, x)) is not None:
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
            clean=clean,
        )

    @staticmethod
    def _release(engine: SupervisedTrainer) -> None:
        engine.state.mod = None


def unlabelled_crops(engine: SupervisedTrainer, x: Tensor) -> tuple[Tensor, list[int]] | None:
    """The unlabelled crops that came along with a batch.

    Args:
        engine: the trainer in a step.
        x: the batch's own crops (B, C, D, H, W); device and type are taken from them.

    Returns:
        Crops (U, C, D, H, W) and a number for each, from its case and from how many crops of that
        case came before it; None where there are none.
    """
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
