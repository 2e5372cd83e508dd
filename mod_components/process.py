"""Settings of the running process."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path

import ignite.distributed as idist
import torch
import torch.distributed as dist

__all__ = ["join_processes", "keep_freed_memory", "launch", "prepare_cpu", "state_of_this_launch"]

logger = logging.getLogger("mod_components.process")

# options of glibc's mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of handing it back to the system at once.

    A training step on the CPU frees and asks for gigabytes in large pieces. By default each piece
    is mapped anew and its pages are zeroed by the kernel again, which takes much of the time of a
    Swin UNETR step at 64³ on two cores. Nothing that is computed changes. Peak memory rises, as
    free pieces of unlike sizes stay around.

    Returns:
        Whether it was set; false where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def prepare_cpu(device: torch.device | str, keep_freed: bool = True) -> None:
    """Make a training on the CPU repeatable bit for bit, and quick. Does nothing for a GPU.

    Threads that add into one place (the gradient of Swin's position biases) do so in whatever
    order they come, unless torch is told to compute deterministically. On a GPU that would forbid
    operations that the networks need.

    Args:
        device: the device of the training.
        keep_freed: see :func:`keep_freed_memory`; false where memory is short.
    """
    if torch.device(device).type != "cpu":
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    # else every new tensor is filled with nan first
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if keep_freed:
        keep_freed_memory()


def join_processes(device: torch.device | str) -> None:
    """Make this process one of torch's default process group, unless it is already.

    When torchrun has restarted the processes, its store still holds the addresses at which those
    before could be reached, and the first to come connects to one that is gone
    (github.com/pytorch/pytorch/issues/135712). Here each restart has names of its own. Only where
    all processes are on one machine: the counts of several machines may differ.

    Args:
        device: the device of the training: NCCL is used for a GPU, gloo for the CPU.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        dist.init_process_group(backend)
        return
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart_{restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def launch() -> str:
    """Name of the torchrun command that started this process; empty without torchrun.

    All processes that it restarts after a failure have the same name. Its run id is no such name:
    it is "none" unless one is given, and a user may give one twice. But the folder that it makes
    for its processes' error files belongs to one launch on one machine.
    """
    folders = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    return folders[2].name if len(folders) > 2 else ""  # a user may have set another path


def state_of_this_launch(ckpt_dir: str | os.PathLike[str]) -> str:
    """What to go on from when torchrun has restarted the processes of a training.

    The command line is the same as before, so that without this the training would begin anew.
    With several processes all must call it: the first one decides for all.

    Args:
        ckpt_dir: folder of the checkpoints.

    Returns:
        Path of ``last.pt`` if this is a restart and the launch has saved before; else empty, and
        the command decides.
    """
    if not launch():
        return ""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    path = Path(ckpt_dir) / "last.pt"
    first = restarted and idist.get_rank() == 0
    own = first and path.is_file() and _launch_of(path) == launch()
    if idist.get_world_size() > 1:
        own = bool(idist.broadcast(float(own), src=0))
    if restarted:
        nothing = "nothing was saved by this launch yet, starting as the command says"
        logger.info("restarted by torchrun: %s.", f"going on from {path}" if own else nothing)
    return str(path) if own else ""


def _launch_of(path: Path) -> object:
    # mapped, so that the tensors are not read
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("launch")
