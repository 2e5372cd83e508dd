"""Halve the resolution of BraTS cases, so that a study fits a CPU.

A voxel of 2 mm is the mean of the eight it covers, in 8 bits (the 99.9th percentile of an image is
254, background 0). It is brain where at least half of the eight are, and tumour likewise, of the
most frequent code.

    python benchmarks/two_millimetres.py /data/BraTS2018 brats2018_2mm --splits splits.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

CODES = (4, 3, 1, 2)  # of equal counts, the enhancing tumour comes first and oedema last
BRIGHTEST, PERCENTILE = 254, 99.9


def blocks(volume: np.ndarray) -> np.ndarray:
    """(D, H, W) -> (D/2, H/2, W/2, 8); an odd last slice is left out."""
    d, h, w = (size // 2 for size in volume.shape)
    pairs = volume[: 2 * d, : 2 * h, : 2 * w].reshape(d, 2, h, 2, w, 2)
    return pairs.transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, 8)


def half_image(volume: np.ndarray) -> np.ndarray:
    """An image (D, H, W), 0 outside the brain, at half its resolution, uint8."""
    parts = blocks(volume.astype(np.float32))
    mean, inside = parts.mean(axis=-1), (parts > 0).mean(axis=-1) >= 0.5
    if not inside.any():
        return np.zeros(mean.shape, np.uint8)
    scaled = mean * BRIGHTEST / np.percentile(volume[volume > 0], PERCENTILE)
    # brain is never 0: that would make background of it
    return np.where(inside, np.clip(np.rint(scaled), 1, 255), 0).astype(np.uint8)


def half_labels(labels: np.ndarray) -> np.ndarray:
    """A label map (D, H, W) in BraTS codes at half its resolution, uint8."""
    parts = blocks(labels)
    counts = np.stack([(parts == code).sum(axis=-1) for code in CODES])  # (codes, D/2, H/2, W/2)
    tumour = counts.sum(axis=0) >= parts.shape[-1] / 2
    return np.where(tumour, np.array(CODES)[counts.argmax(axis=0)], 0).astype(np.uint8)


def half_affine(affine: np.ndarray) -> np.ndarray:
    """The affine of a volume whose voxels are twice as large; the corner stays where it is."""
    half = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    half[:3, 3] += affine[:3, :3] @ np.full(3, 0.5)
    return half


def half_file(source: Path, target: Path) -> None:
    """Write one image or label map at half its resolution."""
    image = nib.load(source)
    assert isinstance(image, SpatialImage)
    volume = np.asarray(image.dataobj)
    labels = source.name.removesuffix(".gz").removesuffix(".nii").endswith("seg")
    halved = half_labels(volume) if labels else half_image(volume)
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(halved, half_affine(image.affine)), target)


def main() -> None:
    """Halve the cases of a folder, or those that a list names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="BraTS folder: a folder for each case")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument(
        "--splits",
        type=Path,
        help="splits.json with lists train and validation: these cases alone, and a copy of it",
    )
    options = parser.parse_args()
    folders = {path.parent.name: path.parent for path in options.source.rglob("*seg.nii*")}
    if options.splits:
        splits = json.loads(options.splits.read_text(encoding="utf-8"))
        wanted = [case for part in ("train", "validation") for case in splits[part]]
        if lacking := [case for case in wanted if case not in folders]:
            parser.error(f"{options.source} lacks {', '.join(lacking)}")
        folders = {case: folders[case] for case in wanted}
    if not folders:
        parser.error(f"{options.source} holds no case with a label map (*seg.nii.gz)")
    for number, (case, folder) in enumerate(sorted(folders.items()), 1):
        for file in sorted(folder.glob("*.nii*")):
            name = file.name if file.name.endswith(".gz") else f"{file.name}.gz"
            half_file(file, options.target / case / name)
        print(f"{number} of {len(folders)}: {case}", flush=True)
    if options.splits:
        content = json.dumps(splits, indent=2) + "\n"
        (options.target / "splits.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
