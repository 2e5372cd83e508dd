"""Time and memory of a training step: the plain network, MOD read literally, and MOD as it is here.

Run from the repository's root: ``python benchmarks/training_step.py``. The literal step runs the
whole student over both masked views and a whole copy of it as teacher; ours stops each of these
passes where the feature is there. Network, optimizer, losses and components come from the bundle's
own ``train.json``; the batch is made up and lies in memory, so that no data are waited for.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common import GIB, ROOT, peak_bytes, processor, setting

if TYPE_CHECKING:  # the parent never loads torch
    from torch import Tensor

# settings of the bundle that make a variant
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"use_mod": False},
    "literal": {},
    "ours": {},
    "ours, views one": {"views": "one"},
    "ours, checkpointed": {"checkpoint_taps": True},
}
HEADER = """\
One training step (forward, losses, backward, AdamW, teacher), batch {batch}, {device}, {threads}
threads, torch {torch}. The variants take turns in one process; seconds are medians of {repeats}
steps after {warmup}. Memory is the peak of a process of its own that makes two steps: {memory}.
FLOPs are those of matrix products, convolutions and attention, counted in one step; their ratio is
what time could be if nothing else cost any (the scan of SegMamba is not counted)."""


class Variant:
    """A trainer with everything that a bundle trains with, and steps one at a time.

    Args:
        bundle: name of the bundle.
        name: which of ``VARIANTS``.
        options: of the command line.
    """

    def __init__(self, bundle: str, name: str, options: argparse.Namespace) -> None:
        import torch
        from monai.bundle import ConfigParser
        from monai.engines import SupervisedTrainer

        from mod_components.mod import Attach

        torch.manual_seed(0)
        config = ConfigParser()
        config.read_config(str(ROOT / "bundles" / bundle / "configs" / "train.json"))
        settings = {"mod_warmup_epochs": 0, "device": options.device, **dict(options.settings)}
        settings |= {"roi_size": [options.size] * 3, "dataset_dir": "benchmark"}
        settings |= {"bundle_root": "unused", **VARIANTS[name]}
        if unknown := [key for key in settings if key not in config]:
            raise SystemExit(f"{bundle} has no setting {', '.join(unknown)}")
        config.update(settings)
        network = config.get_parsed_content("network")
        mod = config.get_parsed_content("mod")
        if name == "literal":
            make_literal(mod)
        self.trainer = SupervisedTrainer(
            device=torch.device(options.device),
            max_epochs=0,
            epoch_length=1,
            train_data_loader=[made_up_batch(options)],
            network=network,
            optimizer=config.get_parsed_content("optimizer"),
            loss_function=config.get_parsed_content("loss"),
            inferer=config.get_parsed_content("train#inferer"),
            train_handlers=[Attach(mod)],
            amp=config.get_parsed_content("train#trainer#amp"),
            amp_kwargs=config.get_parsed_content("train#trainer#amp_kwargs"),
            decollate=False,
            optim_set_to_none=True,
        )

    def step(self) -> float:
        """Make one step; the seconds between Ignite's start and end of the iteration."""
        from ignite.engine import Events

        moments: list[float] = []
        with handling(self.trainer, Events.ITERATION_STARTED, moments):
            self.trainer.state.max_epochs += 1
            self.trainer.run()
            wait_for(self.trainer.state.device)
            moments.append(time.perf_counter())
        gc.collect()
        return moments[-1] - moments[0]


@contextmanager
def handling(trainer: Any, event: Any, moments: list[float]) -> Iterator[None]:
    """Note when the event happens."""

    def note(engine: Any) -> None:
        wait_for(engine.state.device)
        moments.append(time.perf_counter())

    with trainer.add_event_handler(event, note):
        yield


def wait_for(device: Any) -> None:
    """Let the device finish what it was given."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def make_literal(mod: dict[str, Any]) -> None:
    """Let the passes run to the end, and the teacher copy the whole network."""
    from mod_components.networks import Tap

    class WholePass(Tap):
        def __call__(self, network: Any, x: Tensor) -> Tensor:
            from mod_components.networks.side_pass import batch_statistics_kept

            with self.listening(network) as heard, batch_statistics_kept(network):
                network(x)
            return self.as_feature(heard[0], x.shape[2:])

    views = mod["views"]
    views.refer(tap=WholePass(views.tap.name, views.tap.layer_norm))
    views.encoder_modules = {name for name, _ in views.network.named_modules()}


def made_up_batch(options: argparse.Namespace) -> dict[str, Any]:
    """A batch as the loader gives it: four channels with an empty border, three regions."""
    import torch

    generator = torch.Generator().manual_seed(1)
    size, edge = [options.size] * 3, options.size // 8
    brain = torch.zeros(1, 1, *size)
    brain[..., edge:-edge, edge:-edge, edge:-edge] = 1
    return {
        "case": [f"case_{index}" for index in range(options.batch)],
        "image": torch.randn(options.batch, 4, *size, generator=generator) * brain,
        "label": (torch.rand(options.batch, 3, *size, generator=generator) < 0.1).float() * brain,
    }


def measure(bundle: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each variant's steps, the variants in turn, and FLOPs of one step of each."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    prepare(options)
    variants = {name: Variant(bundle, name, options) for name in options.variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(options.warmup + options.repeats):
        for name, variant in variants.items():
            taken = variant.step()
            if repeat >= options.warmup:
                seconds[name].append(taken)
    flops = {}
    for name, variant in variants.items():
        with FlopCounterMode(display=False, custom_mapping=formulas_for_the_cpu()) as counter:
            variant.step()
        flops[name] = counter.get_total_flops()
    return {"seconds": seconds, "flops": flops, "torch": torch.__version__}


def formulas_for_the_cpu() -> dict[Any, Any]:
    """Formulas that PyTorch's counter lacks, from the shapes of arguments and result."""
    import torch
    from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten
    return {
        aten.mkldnn_convolution: lambda x, w, *_, out_shape, **__: conv_flop_count(x, w, out_shape),
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }


def measure_memory(bundle: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory in bytes of two steps of one variant, in this process."""

    prepare(options)
    variant = Variant(bundle, options.variants[0], options)
    for _ in range(2):
        variant.step()
    return {"bytes": peak_bytes(options.device)}


def prepare(options: argparse.Namespace) -> None:
    """Threads, and what a training on the CPU sets."""
    import warnings

    import torch

    from mod_components.process import prepare_cpu

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    prepare_cpu(options.device, keep_freed=not options.measure_memory)


def apart(what: str, bundle: str, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run a measurement in a process of its own; its line of JSON, or why there is none."""
    command = [sys.executable, __file__, what, "--bundles", bundle, "--variants", *names]
    for key in ("size", "batch", "threads", "repeats", "warmup", "device"):
        command += [f"--{key}", str(getattr(options, key))]
    for key, value in options.settings:
        command += ["--set", f"{key}={json.dumps(value)}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        print(f"{bundle}: {lines[-1]}", flush=True)
        return {}
    return dict(json.loads(result.stdout.splitlines()[-1]))


def benchmark(bundle: str, options: argparse.Namespace) -> str:
    """Print the rows of one bundle; the version of torch."""
    result = apart("--measure", bundle, options.variants, options)
    if not result:
        return ""
    memory = {
        name: apart("--measure-memory", bundle, [name], options).get("bytes", float("nan"))
        for name in (options.variants if options.memory else [])
    }
    seconds = {name: statistics.median(all_) for name, all_ in result["seconds"].items()}
    first = options.variants[0]
    for name in options.variants:
        row = f"{bundle:<16} {options.size:>4}  {name:<20} {seconds[name]:>8.3f}"
        row += f"  {seconds[name] / seconds[first]:>6.2f}"
        row += f"  {result['flops'][name] / result['flops'][first]:>6.2f}"
        if memory:
            row += f"  {memory[name] / GIB:>8.2f}  {memory[name] / memory[first]:>6.2f}"
        print(row, flush=True)
    return str(result["torch"])


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted(path.name for path in (ROOT / "bundles").iterdir())
    parser.add_argument("--bundles", nargs="+", default=names, help="bundles (default: all)")
    parser.add_argument("--size", type=int, default=64, help="side of the crops (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="crops a step (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="steps that count (default: 7)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time alone")
    parser.add_argument(
        "--set", dest="settings", type=setting, action="append", default=[], help="KEY=VALUE"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure or options.measure_memory:
        function = measure if options.measure else measure_memory
        print(json.dumps(function(options.bundles[0], options)))
        return 0
    print("bundle           size  variant               seconds   ratio   FLOPs       GiB   ratio")
    torch = [benchmark(bundle, options) for bundle in options.bundles]
    memory = "allocated on the GPU" if options.device != "cpu" else "resident, libraries included"
    facts = {**vars(options), "torch": torch[-1], "memory": memory}
    print("\n" + HEADER.format(**facts) + f"\n{processor()}")
    return 0 if all(torch) else 1


if __name__ == "__main__":
    sys.exit(main())
