"""A brain with a tumour, made of random fields: the voxels of the embedded sample cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mod_components.data.records import CHANNELS

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHAPE = (64, 80, 64)
SPACING_MM = 2.5
# Standard deviation of a cubic B-spline surface over nodes of unit variance, in 3D.
_SPLINE_STD = (151.0 / 315.0) ** 1.5
# Grey values of T1ce, T1, T2, FLAIR as scanners of the BraTS cases give them, white matter = 1.
_TISSUES = {
    "csf": (0.35, 0.35, 2.30, 0.35),
    "white": (1.00, 1.00, 1.00, 1.00),
    "grey": (0.84, 0.80, 1.32, 1.22),
    "nuclei": (0.93, 0.90, 1.10, 1.12),
    "vessel": (2.00, 0.75, 0.80, 0.75),
    # Look-alikes: as bright as oedema in FLAIR or in T2, but never in both.
    "cap": (0.97, 0.97, 1.02, 1.75),
    "rim": (0.86, 0.84, 1.25, 1.80),
    "cyst": (0.50, 0.50, 2.10, 0.60),
    "oedema": (0.86, 0.82, 1.75, 1.70),
    "necrosis": (0.58, 0.66, 2.15, 1.30),
    "enhancing": (1.85, 0.80, 1.55, 1.60),
}


@dataclass(frozen=True)
class _Brain:
    """Geometry of one brain; positions in mm from its centre, axes (left, posterior, up)."""

    position: Array
    radius: Array
    depth_mm: Array
    mask: Mask
    white: Mask
    csf: Mask
    ventricles: Mask


def make_phantom(
    seed: tuple[int, int], enhancing: bool = True
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One case: four images and a label map.

    Args:
        seed: the same numbers give the same voxels on every machine.
        enhancing: whether the tumour has an enhancing part.

    Returns:
        Images (4, *SHAPE) in the order of ``CHANNELS``, 0 outside the brain, and the label map
        (*SHAPE) with codes 1 (core), 2 (oedema), 4 (enhancing).
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    brain = _make_brain(rng)
    tissues = _paint_anatomy(rng, brain)
    labels = _make_tumour(rng, brain, enhancing)
    contrast = float(rng.uniform(0.55, 1.0))
    images = [
        _scan(rng, brain, tissues, labels, channel, contrast) for channel in range(len(CHANNELS))
    ]
    return np.stack(images), labels


def smooth_field(rng: np.random.Generator, cell: int) -> Array:
    """Random field (*SHAPE), mean 0 and variance about 1, smooth over ``cell`` voxels."""
    field: Array = rng.standard_normal([size // cell + 4 for size in SHAPE])
    for axis, size in enumerate(SHAPE):
        weights = _spline_weights(size, field.shape[axis], cell)
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    return field / _SPLINE_STD


def _spline_weights(size: int, nodes: int, cell: int) -> Array:
    """Matrix (size, nodes) of the uniform cubic B-spline."""
    distance = np.abs((np.arange(size) / cell)[:, None] + 1.0 - np.arange(nodes)[None, :])
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
    return np.where(distance < 1.0, near, far)


def _ellipsoid(position: Array, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Distance from ``centre`` in units of the radii; 1 on the surface."""
    scaled = [(p - c) / r for p, c, r in zip(position, centre, radii, strict=True)]
    return np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)


def _make_brain(rng: np.random.Generator) -> _Brain:
    size = rng.uniform(0.92, 1.0)
    radii = np.array([64.0, 84.0, 66.0]) * size
    axes = [(np.arange(n) - (n - 1) / 2) * SPACING_MM for n in SHAPE]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))
    position[2] += 4.0
    # The lower half is flatter, and the frontal lobes are narrower than the occipital ones.
    height = np.where(position[2] < 0, radii[2] * 0.82, radii[2])
    width = radii[0] * (1.0 + 0.0012 * position[1])
    scaled = (position[0] / width) ** 2 + (position[1] / radii[1]) ** 2
    radius = np.sqrt(scaled + (position[2] / height) ** 2)
    radius = radius * (1 + 0.03 * smooth_field(rng, 16) + 0.012 * smooth_field(rng, 7))
    depth = (1.0 - radius) * 66.0 * size
    mask = depth > 0
    folds = np.abs(smooth_field(rng, 4))
    inner = np.abs(smooth_field(rng, 4))
    fissure = (np.abs(position[0] + 1.5 * smooth_field(rng, 12)) < 2.2) & (radius > 0.45)
    sulci = (folds < 0.22) & (depth < 14.0) | (fissure & (position[2] > 0))
    ribbon = (depth < 4.5 + 4.0 * inner) | ((folds < 0.6) & (depth < 19.0))
    ventricles = _ventricles(rng, position)
    return _Brain(
        position=position,
        radius=radius,
        depth_mm=depth,
        mask=mask,
        white=mask & ~ribbon & ~sulci & ~ventricles,
        csf=sulci | ventricles,
        ventricles=ventricles,
    )


def _ventricles(rng: np.random.Generator, position: Array) -> Mask:
    """Two lateral ventricles that bend outwards to the back, and the third between them."""
    wobble = 1.0 + 0.12 * smooth_field(rng, 8)
    width = rng.uniform(6.0, 11.0)
    bend = 6.0 + 0.006 * (position[1] + 20.0) ** 2
    result = _ellipsoid(position, (0.0, 6.0, -8.0), (3.5, 14.0, 12.0)) * wobble < 1
    for side in (-1.0, 1.0):
        bent = np.stack([position[0] - side * bend, position[1], position[2]])
        length = rng.uniform(30.0, 40.0)
        result |= _ellipsoid(bent, (0.0, 2.0, 6.0), (width, length, width + 3.0)) * wobble < 1
    return result


def _paint_anatomy(rng: np.random.Generator, brain: _Brain) -> dict[str, Mask]:
    """Tissues in the order in which they are painted; a later one covers an earlier one."""
    position, white = brain.position, brain.white
    nuclei = np.zeros(SHAPE, bool)
    for side in (-1.0, 1.0):
        wobble = 1.0 + 0.1 * smooth_field(rng, 8)
        nuclei |= _ellipsoid(position, (side * 15.0, 10.0, -4.0), (9.0, 14.0, 9.0)) * wobble < 1
        nuclei |= _ellipsoid(position, (side * 26.0, -6.0, -4.0), (6.0, 17.0, 9.0)) * wobble < 1
    around = _grow(brain.ventricles, 2) & ~brain.ventricles
    horns = np.abs(position[1] - 2.0) > 16.0
    caps = around & horns & (smooth_field(rng, 8) > rng.uniform(-0.9, 0.2))
    spots = white & (smooth_field(rng, 6) > rng.uniform(1.6, 2.1))
    shell = (brain.depth_mm > 0) & (brain.depth_mm < rng.uniform(4.0, 7.5))
    rim = shell & (smooth_field(rng, 14) > rng.uniform(0.5, 1.2))
    cysts = white & (smooth_field(rng, 7) > rng.uniform(2.1, 2.5))
    vessels = (brain.depth_mm < 12.0) & (np.abs(smooth_field(rng, 6)) < 0.10)
    vessels &= np.abs(smooth_field(rng, 6)) < 0.3
    sinus = (np.abs(position[0]) < 3.0) & (brain.depth_mm < 5.0) & (position[2] > -10.0)
    return {
        "white": brain.mask,
        "grey": brain.mask & ~white,
        "nuclei": nuclei & white,
        "cap": (caps | spots) & brain.mask,
        "csf": brain.csf,
        "cyst": cysts,
        "rim": rim & ~brain.csf,
        "vessel": (vessels & ~white) | sinus,
    }


def _make_tumour(rng: np.random.Generator, brain: _Brain, enhancing: bool) -> NDArray[np.uint8]:
    """Label map: a ragged core with necrosis inside its rim, and oedema along white matter."""
    size = rng.uniform(12.0, 21.0) * (1.0 if enhancing else 0.8)
    inside = (brain.depth_mm > size * 0.7 + 3.0) & ~brain.ventricles
    # A glioma sits in a hemisphere, hardly ever in the brain stem.
    inside &= (np.abs(brain.position[0]) > 14.0) & (brain.position[2] > -25.0)
    candidates = np.flatnonzero(inside)
    chosen = np.unravel_index(candidates[int(rng.random() * len(candidates))], SHAPE)
    centre = tuple(float(axis[chosen]) for axis in brain.position)
    stretch = tuple(float(value) * size for value in rng.uniform(0.8, 1.25, 3))
    ragged = 1.0 + 0.22 * smooth_field(rng, 6) + 0.10 * smooth_field(rng, 3)
    rho = _ellipsoid(brain.position, centre, stretch) * np.clip(ragged, 0.7, None)
    healthy = brain.mask & ~brain.ventricles
    core = healthy & (rho < 1.0)
    rim = core & (rho > rng.uniform(0.6, 0.85) + 0.15 * smooth_field(rng, 5))
    reach = 1.0 + rng.uniform(0.35, 0.95) + 0.45 * smooth_field(rng, 7)
    # Oedema spreads in white matter and hardly enters the cortex; without a limit the field would
    # leave crumbs of it far away.
    reach = np.clip(reach, 1.0, 2.2)
    reach = np.where(brain.white, reach, 1.0 + 0.35 * (reach - 1.0))
    oedema = healthy & ~brain.csf & (rho < reach) & ~core
    labels = np.zeros(SHAPE, np.uint8)
    labels[oedema] = 2
    labels[core] = 1
    if enhancing:
        labels[rim] = 4
    return labels


def _scan(
    rng: np.random.Generator,
    brain: _Brain,
    tissues: dict[str, Mask],
    labels: NDArray[np.uint8],
    channel: int,
    contrast: float,
) -> NDArray[np.int16]:
    """One modality as a scanner sees it: blur, texture, bias field, noise, its own grey scale."""
    grey = np.full(SHAPE, _TISSUES["csf"][channel])
    for name, mask in tissues.items():
        grey[mask] = _TISSUES[name][channel] * rng.uniform(0.96, 1.04)
    for code, name in ((2, "oedema"), (1, "necrosis"), (4, "enhancing")):
        where = labels == code
        # Contrast to white matter differs between cases, and inside a tumour from place to place.
        strength = contrast * (1.0 + 0.22 * smooth_field(rng, 5)[where])
        grey[where] = 1.0 + (_TISSUES[name][channel] - 1.0) * strength
    grey = _blur(grey) * (1.0 + 0.025 * smooth_field(rng, 3))
    grey *= np.clip(1.0 + 0.09 * smooth_field(rng, 24), 0.6, 1.5)
    noise = rng.uniform(0.025, 0.05)
    real = grey + noise * rng.standard_normal(SHAPE)
    imaginary = noise * rng.standard_normal(SHAPE)
    # 1 at least: a zero inside the brain would count as background.
    scaled = np.rint(np.sqrt(real**2 + imaginary**2) * rng.uniform(250.0, 900.0))
    return np.where(brain.mask, np.clip(scaled, 1, 32767), 0).astype(np.int16)


def _blur(image: Array) -> Array:
    """Weights 1/4, 1/2, 1/4 along each axis, edges repeated: partial volume."""
    for axis in range(image.ndim):
        padded = np.pad(image, [(int(a == axis),) * 2 for a in range(image.ndim)], mode="edge")
        size = image.shape[axis]
        before, after = (np.take(padded, range(start, start + size), axis) for start in (0, 2))
        image = 0.25 * before + 0.5 * image + 0.25 * after
    return image


def _grow(mask: Mask, voxels: int) -> Mask:
    for _ in range(voxels):
        grown = mask.copy()
        for axis in range(mask.ndim):
            # The brain does not reach the volume's edge, so that wrapping round does no harm.
            grown |= np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
        mask = grown
    return mask
