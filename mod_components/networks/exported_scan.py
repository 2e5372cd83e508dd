"""The selective scan as ONNX can express it: a loop over blocks, without writing in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["exported"]

# A turn of the loop costs more than the arithmetic of a position, so that it takes several at once;
# with more of them the graph grows, and with it the time to export.
BLOCK = 16


def exported(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Run the scan of :func:`mod_components.networks.selective_scan` for ``torch.onnx.export``.

    The exporter that works on ``torch.export`` (``dynamo=True``, torch's default from 2.9 on) turns
    the loop into one ``Scan`` operator of ONNX.

    Args:
        u: input (B, E, L).
        delta: step sizes (B, E, L).
        a: decay rates (E, N).
        b: how the input enters the states (B, N, L).
        c: how the states are read out (B, N, L).
        d: skip weights (E,).

    Returns:
        y (B, E, L); states have its dtype.

    Raises:
        RuntimeError: when the older exporter, which traces and knows no such loop, comes here.
    """
    if torch.jit.is_tracing():
        raise RuntimeError(
            "SegMamba's selective scan can't be exported to ONNX by tracing: export with "
            "dynamo=True, the default of torch.onnx.export in torch 2.9 and later."
        )
    # Private in torch, but the one loop that its exporter knows; the public-looking scan beside it
    # compiles its body first, which takes longer than all the rest. Imported here, for it is slow.
    from torch._higher_order_ops.scan import scan_op

    blocks = [_blocks(x) for x in (u, delta, b, c)]  # (L/K, K, B, E | E | N | N)
    start = u.new_zeros(1, u.shape[0], a.shape[1], u.shape[1])  # (1, B, N, E)
    _, y = scan_op(_block, [start], blocks, (a.t(),))  # (L/K, K, B, E)
    return y.flatten(0, 1)[: u.shape[2]].permute(1, 2, 0) + u * d.unsqueeze(1)


def _block(
    before: Tensor, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, rates: Tensor
) -> tuple[Tensor, Tensor]:
    """Take K positions (K, B, X) from the state (1, B, N, E); the state after them, and their y."""
    decays = torch.exp(delta.unsqueeze(2) * rates)  # (K, B, N, E)
    added = (delta * u).unsqueeze(2) * b.unsqueeze(3)  # (K, B, N, E)
    states = [before]
    for decay, x in zip(decays.split(1), added.split(1), strict=True):
        states.append(x + decay * states[-1])
    return states[-1].clone(), (torch.cat(states[1:]) * c.unsqueeze(3)).sum(2)


def _blocks(x: Tensor) -> Tensor:
    """x (B, X, L) as (L/K, K, B, X), zero beyond L, which leaves the state as it is."""
    padded = F.pad(x, (0, -x.shape[2] % BLOCK))
    return padded.permute(2, 0, 1).unflatten(0, (-1, BLOCK))
