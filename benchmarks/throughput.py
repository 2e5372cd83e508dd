"""The share of a training's time in which its steps wait for data, on a folder of real cases.

Run from the repository's root: ``python benchmarks/throughput.py DATA``. Cases, transforms, loader,
network, losses and components come from the bundle's own ``train.json``; the network is as small as
in the tests, so that computing it does not hide the loading. The files of DATA have been read once
before anything is measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from common import ROOT, setting

# cache: cache_rate, whether cases are kept on disk
CACHES = {"none": (0.0, False), "disk, empty": (0.0, True), "disk, full": (0.0, True)}
CACHES["memory"] = (1.0, False)
HEADER = """\
bundle {bundle}, small network, crops of {size}³, batch {batch}, {device}, {threads} thread(s) a
process, torch {torch}, {cores} cores; {steps} steps in {epochs} epochs. Set-up is what passes
before the first epoch (with "memory" all cases are prepared in it); "wait" is all that passes in
the epochs outside steps: starting workers, loading, preparing, augmenting."""


def measure(cache: str, workers: int, folder: str, options: argparse.Namespace) -> dict[str, float]:
    """Train for some epochs; seconds of set-up, and of waiting and of steps in all epochs."""
    import torch
    from ignite.engine import Events
    from monai.bundle import ConfigParser
    from monai.engines import SupervisedTrainer

    from mod_components.handlers import Reseed
    from mod_components.mod import Attach
    from mod_components.release import backbones

    rate, on_disk = CACHES[cache]
    config = ConfigParser()
    config.read_config(str(ROOT / "bundles" / options.bundle / "configs" / "train.json"))
    settings = dict(backbones()[options.bundle.removesuffix("_mod")]["test_settings"])
    settings |= {"dataset_dir": options.data, "bundle_root": folder, "device": options.device}
    settings |= {"roi_size": [options.size] * 3, "batch_size": options.batch, "cache_rate": rate}
    settings |= {"num_workers": workers, "cache_dir": folder if on_disk else ""}
    config.update({**settings, **dict(options.settings)})
    start = time.perf_counter()
    dataset = config.get_parsed_content("train#with_unlabelled")
    set_up = time.perf_counter() - start
    trainer = SupervisedTrainer(
        device=torch.device(options.device),
        max_epochs=options.epochs,
        train_data_loader=config.get_parsed_content("train#dataloader"),
        network=config.get_parsed_content("network"),
        optimizer=config.get_parsed_content("optimizer"),
        loss_function=config.get_parsed_content("loss"),
        train_handlers=[Attach(config.get_parsed_content("mod")), Reseed(0, dataset)],
        amp=config.get_parsed_content("train#trainer#amp"),
        amp_kwargs=config.get_parsed_content("train#trainer#amp_kwargs"),
    )
    waiting, stepping, last = [], [], [0.0]

    def note(spans: list[float]) -> None:
        if options.device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        spans.append(now - last[0])
        last[0] = now

    trainer.add_event_handler(Events.STARTED, lambda: note([]))
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: note(waiting))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: note(stepping))
    trainer.run()
    return {"set_up": set_up, "wait": sum(waiting), "step": sum(stepping), "steps": len(stepping)}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of a data set")
    parser.add_argument("--bundle", default="swinunetr_mod", help="default: swinunetr_mod")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a run (default: 4)")
    parser.add_argument("--size", type=int, default=64, help="side of the crops (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="crops a step (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--set", dest="settings", type=setting, action="append", default=[], help="KEY=VALUE"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    import torch

    from mod_components.process import prepare_cpu

    torch.set_num_threads(options.threads)
    prepare_cpu(options.device)
    for path in Path(options.data).rglob("*.nii*"):  # into the system's file cache
        path.read_bytes()
    print(f"{'cache':<12}  workers  set-up s  wait s a step  step s  share of time waiting")
    found: dict[str, float] = {}
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            for cache in options.caches:
                found = measure(cache, workers, folder, options)
                wait, step = (found[key] / found["steps"] for key in ("wait", "step"))
                row = f"{cache:<12}  {workers:>7}  {found['set_up']:>8.1f}  {wait:>13.3f}"
                print(f"{row}  {step:>6.3f}  {wait / (wait + step):>6.1%}", flush=True)
            files = [path.stat().st_size for path in Path(folder).glob("*/*.pt")]
    if files:
        print(f"on disk: {len(files)} cases, {sum(files) / len(files) / 1e6:.0f} MB a case")
    facts = {"torch": torch.__version__, "cores": torch.multiprocessing.cpu_count()}
    print("\n" + HEADER.format(**vars(options), **facts, steps=int(found["steps"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
