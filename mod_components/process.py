"""Settings of the running process."""

from __future__ import annotations

import ctypes
import sys

import torch

__all__ = ["keep_freed_memory", "prepare_cpu"]

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
