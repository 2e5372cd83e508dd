"""Time of HD95 beside MONAI's, on the full-size masks of a real case.

Run from the repository's root: ``python benchmarks/hd95.py /data/BraTS2021``. The first labelled
case of the data set is compared with its truth shifted by three voxels, and with its truth dilated
twice. The bounds are a fifth of MONAI's time for the three regions, and the same values to 1e-6 mm;
the exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import scipy
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage
from torch import Tensor

from mod_components.data.layouts import REGIONS, find_layout, scan
from mod_components.metrics import hd95, surface_scores

RATIO_BOUND, DIFFERENCE_BOUND = 5.0, 1e-6
SHIFT, DILATIONS = 3, 2


def load(folder: Path) -> tuple[str, Tensor, list[float]]:
    """First labelled case of a data set: its id, masks (3, D, H, W) and spacing in mm."""
    codes = find_layout(folder).region_codes
    labelled = [(c.case, c.label) for c in scan(folder) if c.label]
    if not labelled:
        raise SystemExit(f"{folder} has no labelled case: give a labelled data set.")
    case, label = labelled[0]
    image = nib.load(label)
    voxels = np.asarray(image.dataobj)
    masks = np.stack([np.isin(voxels, codes[region]) for region in REGIONS])
    return case, torch.from_numpy(masks), [float(size) for size in image.header.get_zooms()[:3]]


def perturbed(truth: Tensor) -> dict[str, Tensor]:
    """Predictions made from the truth, (3, D, H, W) each."""
    dilated = [ndimage.binary_dilation(mask, iterations=DILATIONS) for mask in truth.numpy()]
    return {"shifted": truth.roll(SHIFT, dims=1), "dilated": torch.from_numpy(np.stack(dilated))}


def methods(
    pred: Tensor, truth: Tensor, spacing: list[float]
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """What is timed; each gives HD95 (3,) first."""

    def monais() -> tuple[Tensor]:
        distances = compute_hausdorff_distance(
            pred[None], truth[None], include_background=True, percentile=95, spacing=spacing
        )
        return (distances[0],)

    return {
        "MONAI": monais,
        "hd95": lambda: (hd95(pred, truth, spacing),),
        "hd95 and NSD": lambda: surface_scores(pred, truth, spacing),
    }


def benchmark(pred: Tensor, truth: Tensor, spacing: list[float], repeats: int) -> list[str]:
    """Print a row for each method; return the bounds that are missed."""
    runs = methods(pred, truth, spacing)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    values = {name: run()[0] for name, run in runs.items()}  # and warm up
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    missed = []
    for name, value in middle.items():
        ratio = middle["MONAI"] / value
        difference = (values[name] - values["MONAI"]).abs().max().item()
        distances = " ".join(f"{mm:.3f}" for mm in values[name].tolist())
        print(f"  {name:<12}  {value:>8.4f}  {ratio:>6.2f}  {difference:>10.1e}  {distances}")
        if name == "hd95" and ratio < RATIO_BOUND:
            missed.append(f"{ratio:.2f} times faster, not {RATIO_BOUND}")
        if difference > DIFFERENCE_BOUND:
            missed.append(f"{name} differs by {difference:.1e} mm, not {DIFFERENCE_BOUND}")
    return missed


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a BraTS or Decathlon data set")
    parser.add_argument("--repeats", type=int, default=9, help="runs per method (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--float", action="store_true", help="masks of float32 instead of bool")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # MONAI calls its own old argument
    case, truth, spacing = load(options.folder)
    kind = torch.float32 if options.float else torch.bool
    versions = f"monai {monai.__version__}, scipy {scipy.__version__}, torch {torch.__version__}"
    print(f"{versions}, {options.threads} thread(s)")
    print(f"{case}: {tuple(truth.shape)} masks ({kind}), voxels of {spacing} mm")
    print(f"medians of {options.repeats} runs, the methods in turn\n")
    columns = f"  {'method':<12}  {'seconds':>8}  {'faster':>6}  {'difference':>10}"
    print(f"{columns}  HD95 in mm of {', '.join(REGIONS)}")
    missed = []
    for name, pred in perturbed(truth).items():
        print(f"{name} truth:")
        found = benchmark(pred.to(kind), truth.to(kind), spacing, options.repeats)
        missed += [f"{name}: {text}" for text in found]
    print("\n" + ("\n".join(f"MISSED: {text}" for text in missed) or "No bound is missed."))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
