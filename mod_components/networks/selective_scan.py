"""The selective scan of Mamba, fast on a CPU and small in memory, with plain torch operations."""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from mod_components.networks import chunked_scan
from mod_components.networks.exported_scan import exported

__all__ = ["scan_backend", "selective_scan"]

_LOGGER = logging.getLogger(__name__)
_KERNEL_DEVICES = ("cuda",)  # where mamba_ssm's kernel runs


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
) -> Tensor:
    """Run the selective state space model of Mamba along a sequence.

    Every channel e has N states, which start at zero: ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t
    u_t`` and ``y_t = C_t · h_t + D u_t`` (Gu and Dao 2023, https://arxiv.org/abs/2312.00752, with
    their simplified discretisation of B). States are float32, or float64 where ``u`` is, whatever
    autocast says. Gradients of all six arguments are exact; second derivatives raise an error.

    The kernel of ``mamba_ssm`` is used where :func:`scan_backend` says so. The torch implementation
    never holds all B E N L states: beside the inputs and their gradients some 20 MB of buffers
    (more on a GPU), and from the forward pass to the backward pass at most N / 16 times as much
    as ``u``. It computes on one thread and gives the same bits in every run. Under
    ``torch.compile`` it is one operator of the graph. ``torch.jit.trace`` records it as a loop, for
    inference at any length, which uses torch's threads: set them to one on a shared machine.

    Args:
        u: input (B, E, L), of a floating point dtype.
        delta: step sizes (B, E, L), positive.
        A: decay rates (E, N), negative.
        B: how the input enters the states (B, N, L).
        C: how the states are read out (B, N, L).
        D: skip weights (E,).

    Returns:
        y (B, E, L), of ``u``'s dtype.

    Raises:
        ValueError: when a shape does not fit, or ``u`` is not of a floating point dtype.
    """
    if torch.onnx.is_in_onnx_export():
        return exported(u, delta, A, B, C, D)
    if torch.jit.is_tracing():  # sizes are tensors here: comparing them would only warn
        return chunked_scan.script()(u, delta, A, B, C, D)
    _check(u, delta, A, B, C, D)
    if torch.compiler.is_compiling() or u.is_meta:
        return _scan_operator(u, delta, A, B, C, D)[0]
    if has_torch_function((u, delta, A, B, C, D)):  # MONAI's MetaTensor would slow every step down
        u, delta, A, B, C, D = (x.as_subclass(Tensor) for x in (u, delta, A, B, C, D))  # noqa: N806
    if scan_backend(u.device) == "mamba_ssm" and u.dtype != torch.float64:
        return _run_kernel(u, delta, A, B, C, D)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C, D)):
        return _Scan.apply(u, delta, A, B, C, D)[0]
    with chunked_scan.one_thread():
        return chunked_scan.forward(u, delta, A, B, C, D, keep=False)[0]


def scan_backend(device: torch.device | str) -> str:
    """Say which implementation :func:`selective_scan` uses for tensors on a device.

    Args:
        device: the device of ``u``.

    Returns:
        "mamba_ssm" on a CUDA device where ``mamba_ssm`` can be imported, else "torch". Tensors of
        dtype float64, traced and compiled modules use "torch" everywhere.
    """
    on_gpu = torch.device(device).type in _KERNEL_DEVICES
    backend = "mamba_ssm" if on_gpu and _kernel() is not None else "torch"
    _log_once(backend)
    return backend


@functools.cache
def _log_once(backend: str) -> None:
    _LOGGER.info("selective scan: using the implementation of %s", backend)


@functools.cache
def _kernel() -> Callable[..., Tensor] | None:
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return None
    except Exception as error:  # a kernel built for another torch or driver fails in many ways
        _LOGGER.warning("mamba_ssm is installed and does not load: %s", error)
        return None
    return getattr(module, "selective_scan_fn", None)


def _run_kernel(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    kernel = _kernel()
    assert kernel is not None
    dtype = u.dtype
    if not dtype == delta.dtype == b.dtype == c.dtype:  # the kernel wants one dtype for these four
        u, delta, b, c = u.float(), delta.float(), b.float(), c.float()
    return kernel(u, delta, a.float(), b, c, d.float()).to(dtype)


def _check(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    if u.ndim != 3 or u.numel() == 0 or not u.is_floating_point():
        raise ValueError(
            f"u must be a floating point tensor (B, E, L) that is not empty, got {tuple(u.shape)} "
            f"of {u.dtype}."
        )
    batch, channels, length = u.shape
    if a.ndim != 2 or a.shape[0] != channels or a.shape[1] == 0:
        raise ValueError(f"A must be (E, N) with E = {channels}, got {tuple(a.shape)}.")
    expected = {
        "delta": (delta, (batch, channels, length)),
        "B": (b, (batch, a.shape[1], length)),
        "C": (c, (batch, a.shape[1], length)),
        "D": (d, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}.")


class _Scan(torch.autograd.Function):
    """The scan in eager mode."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_scan.forward_keeping(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros for the kept states
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _dstarts: Any) -> Any:
        if dy is None:
            return (None,) * 6
        # once_differentiable would return gradients that are silently constant where dy is
        if torch.is_grad_enabled():
            raise RuntimeError("selective_scan has no second derivatives (create_graph=True).")
        *inputs, starts = ctx.saved_tensors
        return chunked_scan.backward(dy, inputs, starts)


# The same for compiled graphs and for shapes without numbers (meta). Not for eager mode: the first
# call of such an operator imports torch._dynamo, which takes seconds.
_ARGUMENTS = "Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor d"


@torch.library.custom_op(
    "mod_components::selective_scan", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _scan_operator(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return chunked_scan.forward_keeping(*inputs)


@_scan_operator.register_fake
def _(u: Tensor, delta: Tensor, a: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    row = (u.shape[0], a.shape[1], u.shape[1])
    groups = chunked_scan.plan(math.prod(row), u.shape[2], u.device.type == "cpu")[0]
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    return torch.empty_like(u), u.new_empty((groups, *row), dtype=dtype)


@torch.library.custom_op(
    "mod_components::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor dy, {_ARGUMENTS}, Tensor starts) -> ({', '.join(['Tensor'] * 6)})",
)
def _backward_operator(dy: Tensor, *inputs_starts: Tensor) -> Any:
    return chunked_scan.backward(dy, inputs_starts[:-1], inputs_starts[-1])


@_backward_operator.register_fake
def _(dy: Tensor, *inputs_starts: Tensor) -> Any:
    return tuple(torch.empty_like(x) for x in inputs_starts[:-1])


_scan_operator.register_autograd(
    lambda ctx, dy, _dstarts: _backward_operator(dy, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output[1]),
)
