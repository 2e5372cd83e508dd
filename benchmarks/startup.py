"""Seconds from ``python`` to a bundle's first training step, by what they are spent on.

Run from the repository's root: ``python benchmarks/startup.py DATA``. A process of its own for each
run asks for the parts of the bundle's ``train.json`` in the order in which a training needs them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from common import ROOT

# what is timed: parts of the config
STAGES = {
    "read data folder, check cases": "data",
    "data sets and loader": "train#dataloader",
    "build network": "network_def",
    "find unused parameters": "network",
    "MOD": "mod",
    "optimizer": "optimizer",
    "validation": "validate#evaluator",
    "trainer, handlers": "train#trainer",
}


def measure(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Wall-clock and processor seconds of each stage, in this process."""
    moments = [(0.0, 0.0), (time.time() - options.started, time.process_time())]
    names = ["start Python"]

    def note(name: str) -> None:
        names.append(name)
        moments.append((time.time() - options.started, time.process_time()))

    from monai.bundle import ConfigWorkflow

    note("import MONAI")
    import mod_components.data
    import mod_components.handlers
    import mod_components.mod  # noqa: F401

    note("import mod_components")
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            str(ROOT / "bundles" / options.bundle / "configs" / "train.json"),
            logging_file=False,
            dataset_dir=options.data,
            bundle_root=folder,
            roi_size=[options.size] * 3,
            num_workers=0,
            batch_size=1,
        )
        workflow.initialize()
        note("read and initialise config")
        for name, part in STAGES.items():
            found = workflow.parser.get_parsed_content(part)
            note(name)
        from ignite.engine import Events

        def first(engine: object) -> None:
            note("load the first batch, copy teacher")
            found.terminate()

        found.add_event_handler(Events.ITERATION_STARTED, first)
        found.run()
    steps = zip(names, moments, moments[1:], strict=False)
    return {name: (b[0] - a[0], b[1] - a[1]) for name, a, b in steps}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of a data set")
    parser.add_argument("--bundles", nargs="+", default=["swinunetr_mod", "segmamba_mod"])
    parser.add_argument("--size", type=int, default=64, help="side of the crops (default: 64)")
    parser.add_argument("--repeats", type=int, default=3, help="processes (default: 3)")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.started:
        print(json.dumps(measure(options)))
        return 0
    for bundle in options.bundles:
        runs = []
        for _ in range(options.repeats):
            command = [sys.executable, "-W", "ignore", __file__, options.data, "--bundle", bundle]
            command += ["--size", str(options.size), "--started", str(time.time())]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{bundle}, medians of {len(runs)}{'':<14}wall s   processor s")
        for name in runs[0]:
            wall, cpu = (statistics.median(run[name][kind] for run in runs) for kind in (0, 1))
            print(f"  {name:<36}{wall:>8.2f}{cpu:>14.2f}")
        totals = [[sum(stage[kind] for stage in run.values()) for run in runs] for kind in (0, 1)]
        wall, cpu = map(statistics.median, totals)
        print(f"  {'together':<36}{wall:>8.2f}{cpu:>14.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
