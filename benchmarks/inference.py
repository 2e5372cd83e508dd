"""Time and memory of segmenting a case: the whole volume, the brain's box, and what speeds it up.

Run from the repository's root: ``python benchmarks/inference.py /data/BraTS2021 --bundle
swinunetr_mod --checkpoint bundles/swinunetr_mod/models/model.pt``. Reading, windows and label map
are those of the bundle's ``inference.json``, the settings of the checkpoint those of the
``training.json`` beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import GIB, ROOT, peak_bytes, processor

if TYPE_CHECKING:  # the parent never loads torch
    from torch import Tensor

PLAIN = {"crop_to_brain": True, "sw_batch_size": 1, "amp": False}
# what a variant's label map is compared with, and its settings
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole volume": ("whole volume", {"crop_to_brain": False}),
    "brain's box": ("whole volume", {}),
    "box, 4 windows at once": ("brain's box", {"sw_batch_size": 4}),
    "box, bfloat16": ("brain's box", {"amp": True}),
}
HEADER = (
    "case                 variant                 windows  seconds      CPU  ratio    GiB   differ"
    "  in brain  Dice"
)
NOTE = """\
{device}, {threads} threads, torch {torch}. Reading, network and label map of one case; the variants
take turns in one process, seconds are medians of {repeats}, on the clock and of the processor; the
ratio is of the latter on a CPU, as others may use it too, and else of the former. Memory is the
peak of a process of its own that segments the first case. "differ" counts voxels of the label map,
the box's against the whole volume's and the others' against the box's, and how many of them are
brain. Dice: core, whole, enhancing."""


class Variant:
    """A bundle's ``inference.json`` with settings, to segment one case at a time.

    Args:
        name: which of ``VARIANTS``.
        options: of the command line.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        from monai.bundle import ConfigWorkflow

        settings = {**PLAIN, "device": options.device, **VARIANTS[name][1]}
        settings |= {"dataset_dir": options.folder, "checkpoint": options.checkpoint}
        settings |= {} if options.overlap is None else {"overlap": options.overlap}
        workflow = ConfigWorkflow(
            str(ROOT / "bundles" / options.bundle / "configs" / "inference.json"),
            logging_file=False,
            workflow_type="inference",
            **settings,
        )
        self.get = workflow.parser.get_parsed_content
        self.cases = {case["case"]: case for case in self.get("datalist")}
        self.network = self.get("network").eval()
        self.get("load")(self.network, self.get("checkpoints")[0])
        self.windows = 0
        self.network.register_forward_pre_hook(self.count)

    def count(self, network: Any, inputs: tuple[Tensor, ...]) -> None:
        """Count the windows that the network is given."""
        self.windows += len(inputs[0])

    def segment(self, case: str) -> tuple[Tensor, tuple[float, float]]:
        """The label map (D, H, W) of a case, and the seconds it took by clock and processor."""
        import torch

        self.windows = 0
        start, processor = time.perf_counter(), time.process_time()
        data = self.get("preprocessing")(self.cases[case])
        with torch.no_grad():
            logits = self.get("predict")(data["image"][None].to(self.get("device")), self.network)
        found = self.get("steps")({**data, "pred": logits[0]})["pred"][0].cpu()
        taken = time.perf_counter() - start, time.process_time() - processor
        return found.as_tensor(), taken


def true_regions(folder: str) -> dict[str, tuple[Path, dict[str, tuple[int, ...]]]]:
    """File of the label map and codes of the regions, by case."""
    from mod_components.data.layouts import find_layout, scan

    codes = find_layout(folder).region_codes
    return {case.case: (Path(case.label), codes) for case in scan(folder) if case.label}


def dice_of(found: Tensor, label: Path, codes: dict[str, tuple[int, ...]]) -> list[float]:
    """Dice of tumour core, whole and enhancing tumour."""
    import nibabel as nib
    import numpy as np
    import torch

    from mod_components.data.layouts import REGIONS
    from mod_components.metrics import dice

    maps = found.numpy(), np.asarray(nib.load(label).dataobj)
    pred, true = (
        torch.from_numpy(np.stack([np.isin(voxels, codes[region]) for region in REGIONS]))
        for voxels in maps
    )
    return [float(value) for value in dice(pred, true)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of facts by case and variant, the variants in turn."""
    import torch

    prepare(options)
    variants = {name: Variant(name, options) for name in options.variants}
    first = next(iter(variants.values()))
    truth = true_regions(options.folder)
    rows = []
    for case in options.cases or list(first.cases):
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        maps = {}
        brain = (first.get("read")(first.cases[case]["image"]) != 0).any(0).as_tensor()
        for _ in range(options.repeats):
            for name, variant in variants.items():
                maps[name], taken = variant.segment(case)
                seconds[name].append(taken)
        for name, variant in variants.items():
            other = maps.get(VARIANTS[name][0])
            differ = torch.zeros_like(brain) if other is None else maps[name] != other
            scores = dice_of(maps[name], *truth[case]) if case in truth else []
            facts = {"case": case, "variant": name, "windows": variant.windows}
            clock, cpu = (statistics.median(taken) for taken in zip(*seconds[name], strict=True))
            facts |= {"seconds": clock, "cpu": cpu, "dice": scores}
            rows.append({**facts, "differ": int(differ.sum()), "brain": int(differ[brain].sum())})
    return {"rows": rows, "torch": torch.__version__}


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory in bytes of this process, which segments one case in one way."""

    prepare(options)
    variant = Variant(options.variants[0], options)
    variant.segment((options.cases or list(variant.cases))[0])
    return {"bytes": peak_bytes(options.device)}


def prepare(options: argparse.Namespace) -> None:
    """Threads, and no warnings among the rows."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)


def apart(what: str, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run a measurement in a process of its own, and read its line of JSON."""
    command = [sys.executable, __file__, options.folder, what, "--variants", *names]
    for key in ("bundle", "checkpoint", "threads", "repeats", "device", "overlap"):
        if getattr(options, key) is not None:
            command += [f"--{key}", str(getattr(options, key))]
    command += ["--cases", *options.cases] if options.cases else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    return dict(json.loads(result.stdout.splitlines()[-1]))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder of cases")
    parser.add_argument("--bundle", default="swinunetr_mod", help="default: swinunetr_mod")
    parser.add_argument("--checkpoint", required=True, help="weights of that bundle's network")
    parser.add_argument("--cases", nargs="+", default=[], help="ids (default: all)")
    parser.add_argument("--overlap", type=float, help="of windows (default: the training's)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="times that count (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time alone")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure or options.measure_memory:
        print(json.dumps((measure if options.measure else measure_memory)(options)))
        return 0
    result = apart("--measure", options.variants, options)
    memory = {
        name: apart("--measure-memory", [name], options)["bytes"] / GIB
        for name in (options.variants if options.memory else [])
    }
    print(HEADER)
    which = "cpu" if options.device == "cpu" else "seconds"
    first: dict[str, float] = {}
    for row in result["rows"]:
        ratio = row[which] / first.setdefault(row["case"], row[which])
        gib = f"{memory[row['variant']]:.2f}" if memory else "-"
        print(
            f"{row['case']:<20} {row['variant']:<23} {row['windows']:>7}  {row['seconds']:>7.2f}  "
            f"{row['cpu']:>7.2f}  {ratio:>5.2f}  {gib:>5}  {row['differ']:>7}  {row['brain']:>8}  "
            + " ".join(f"{score:.4f}" for score in row["dice"])
        )
    print("\n" + NOTE.format(**vars(options), torch=result["torch"]))
    print(processor())
    return 0


if __name__ == "__main__":
    sys.exit(main())
