"""Time and memory of the selective scan beside mambapy's pscan and beside a plain loop.

Run from the repository's root: ``python benchmarks/selective_scan.py``. The bounds are half of
mambapy's time from 32,768 positions on, and a fifth of its memory from 262,144 positions on. The
exit status is 1 where the scan misses one, and 2 where that cannot be judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import processor

if TYPE_CHECKING:  # the parent never loads torch: a child's peak RSS starts from its parent's
    from torch import Tensor

CHANNELS, STATES = 96, 16
METHODS = ("ours", "mambapy", "loop")
TIME_BOUND, TIME_FROM = 0.5, 32_768
MEMORY_BOUND, MEMORY_FROM = 0.2, 262_144
MAMBAPY_BYTES = 50_000  # per position, with 96 channels of 16 states
MIB = 2**20

HEADER = """\
Selective scan, forward + backward (gradients of u, delta, A, B, C, D), float32, batch 1,
E = {channels}, N = {states}. Every run is a process of its own and the methods take turns; seconds
and memory are medians over the runs. Memory is the process's peak (RU_MAXRSS) less its resident
size just before the call, when libraries are loaded, inputs are made and a short sequence has run.
mambapy: exp(delta A) and delta B u built as mambapy does, its pscan, the product with C, plus D u.
loop: one position after the other with autograd. ours computes on one thread in any case."""


def ours(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The scan of this project: u and delta (B, E, L), B and C (B, N, L)."""
    from mod_components.networks.selective_scan import selective_scan

    return selective_scan(u, delta, a, b, c, d)


def mambapy(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """mambapy's scan: u and delta (B, L, E), B and C (B, L, N), as its block has them."""
    import torch
    from mambapy.pscan import pscan

    decay = torch.exp(delta.unsqueeze(-1) * a)  # (B, L, E, N)
    x = delta.unsqueeze(-1) * b.unsqueeze(2) * u.unsqueeze(-1)
    return (pscan(decay, x) @ c.unsqueeze(-1)).squeeze(3) + d * u


def loop(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The definition: u and delta (B, L, E), B and C (B, L, N)."""
    import torch

    h = u.new_zeros(u.shape[0], u.shape[2], a.shape[1])
    y = []
    for u_t, delta_t, b_t, c_t in zip(*(x.unbind(1) for x in (u, delta, b, c)), strict=True):
        step = delta_t.unsqueeze(2)
        h = torch.exp(step * a) * h + step * b_t.unsqueeze(1) * u_t.unsqueeze(2)
        y.append((h @ c_t.unsqueeze(2)).squeeze(2) + d * u_t)
    return torch.stack(y, 1)


def make_inputs(length: int, channels_first: bool, device: str) -> tuple[list[Tensor], Tensor]:
    """The six inputs and the gradient of y, in the memory layout that the method works with."""
    import torch

    torch.manual_seed(0)
    delta = torch.exp(torch.empty(1, length, CHANNELS).uniform_(-6.9, -2.3))
    u, dy = torch.randn(1, length, CHANNELS), torch.randn(1, length, CHANNELS)
    b, c = torch.randn(1, length, STATES), torch.randn(1, length, STATES)
    if channels_first:
        u, delta, b, c, dy = (x.transpose(1, 2).contiguous() for x in (u, delta, b, c, dy))
    a = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)
    tensors = [u, delta, a, b, c, torch.randn(CHANNELS)]
    return [x.to(device).requires_grad_() for x in tensors], dy.to(device)


def measure(method: str, length: int, threads: int, device: str) -> dict[str, Any]:
    """Run a method once, in this process."""
    import torch

    torch.set_num_threads(threads)
    function: Callable[..., Tensor] = {"ours": ours, "mambapy": mambapy, "loop": loop}[method]

    def run(tensors: list[Tensor], dy: Tensor) -> float:
        start = time.perf_counter()
        torch.autograd.grad(function(*tensors), tensors, dy)
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    tensors, dy = make_inputs(length, method == "ours", device)
    run(*make_inputs(64, method == "ours", device))
    if device == "cpu":
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        seconds = run(tensors, dy)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = run(tensors, dy)
        peak = torch.cuda.max_memory_allocated()
    return {"seconds": seconds, "bytes": peak - before, "torch": torch.__version__}


def measure_apart(method: str, length: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Run a method once in a process of its own; None where it fails, for want of memory say."""
    command = [sys.executable, __file__, "--measure", method, "--lengths", str(length)]
    command += ["--threads", str(options.threads), "--device", options.device]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        print(f"{method} at {length:,}: {lines[-1]}", flush=True)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def available_bytes() -> int:
    """Memory that new processes can have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))


def methods_for(length: int, loop_rate: float, options: argparse.Namespace) -> list[str]:
    """The methods that can be run at this length; says why others cannot."""
    methods = list(METHODS)
    if loop_rate * length > options.loop_seconds:
        print(f"loop at {length:,}: left out, about {loop_rate * length:.0f} s (--loop-seconds)")
        methods.remove("loop")
    needed = MAMBAPY_BYTES * length
    if options.device == "cpu" and available_bytes() < 1.1 * needed:
        print(f"mambapy at {length:,}: left out, it needs about {needed / 1e9:.0f} GB of memory")
        methods.remove("mambapy")
    return methods


def benchmark(length: int, loop_rate: float, options: argparse.Namespace) -> list[str] | None:
    """Print the rows of one length; return the bounds that are missed, None if none is judged."""
    methods = methods_for(length, loop_rate, options)
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for repeat in range(options.repeats):
        for method in methods:
            if repeat and method == "mambapy" and length >= MEMORY_FROM:
                continue  # long, and the largest in memory: once is enough
            result = measure_apart(method, length, options)
            if result is not None:
                runs[method].append(result)
    middle = {
        method: {key: statistics.median(run[key] for run in done) for key in ("seconds", "bytes")}
        for method, done in runs.items()
        if done
    }
    for method, values in middle.items():
        row = f"{length:>9,}  {method:<8} {len(runs[method]):>4}  {values['seconds']:>8.2f}"
        row += f"  {values['bytes'] / MIB:>9,.0f}"
        if method != "ours" and "ours" in middle:
            ratios = [middle["ours"][key] / values[key] for key in ("seconds", "bytes")]
            row += f"  {ratios[0]:>10.3f}  {ratios[1]:>12.3f}"
        print(row, flush=True)
    if "ours" not in middle:
        return [f"{length:,} positions: our scan did not end"]
    if "mambapy" not in middle or options.device != "cpu":
        return None
    missed = []
    for key, start, bound in (
        ("seconds", TIME_FROM, TIME_BOUND),
        ("bytes", MEMORY_FROM, MEMORY_BOUND),
    ):
        ratio = middle["ours"][key] / middle["mambapy"][key]
        if length >= start and ratio > bound:
            missed.append(f"{length:,} positions: {ratio:.2f} of mambapy's {key}, not {bound}")
    return missed


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4_096, 32_768, 262_144])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="runs per method (default: 3)")
    parser.add_argument("--loop-seconds", type=float, default=30, help="leave longer loops out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        result = measure(options.measure, options.lengths[0], options.threads, options.device)
        print(json.dumps(result))
        return 0
    if importlib.util.find_spec("mambapy") is None:
        print("mambapy is missing: python -m pip install --no-deps mambapy==1.2.0")
        return 2
    probe = measure_apart("loop", 1024, options)
    if probe is None:
        return 2
    print(HEADER.format(channels=CHANNELS, states=STATES))
    print(f"torch {probe['torch']}, {options.threads} thread(s), {options.device}; {processor()}\n")
    print("positions  method   runs   seconds        MiB  ours: time  ours: memory")
    missed, unjudged = [], []
    for length in options.lengths:
        found = benchmark(length, probe["seconds"] / 1024, options)
        if found is None:
            unjudged.append(f"{length:,}")
        missed += found or []
    print("\n" + ("\n".join(f"MISSED at {x}" for x in missed) or "No bound is missed."))
    if unjudged:
        print(f"Not judged, as mambapy did not run on the CPU: {', '.join(unjudged)} positions.")
    return 1 if missed else 2 if unjudged else 0


if __name__ == "__main__":
    sys.exit(main())
