"""The selective scan as ONNX can express it: a loop over blocks, without writing in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["exported"]

# A turn of ONNX's Scan costs more than the arithmetic of one position, so that a turn takes this
# many; a longer body makes the graph larger and the scan hardly quicker.
BLOCK = 16


def exported(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Run the scan of :func:`mod_components.networks.selective_scan` for ``torch.onnx.export``.

    Only for the exporter that works on ``torch.export`` (``dynamo=True``, torch's default): it
    turns the loop into one ``Scan`` operator, where the older one would have to unroll it.

    Args:
        u: input (B, E, L).
        delta: step sizes (B, E, L).
        a: decay rates (E, N).
        b: how the input enters the states (B, N, L).
        c: how the states are read out (B, N, L).
        d: skip weights (E,).

    Returns:
        y (B, E, L).

    Raises:
        RuntimeError: when the older exporter, which traces, reaches it.
    """
    if torch.jit.is_tracing():
        raise RuntimeError(
            "the selective scan can't be exported to ONNX by tracing: leave dynamo=True, "
            "torch.onnx.export's default."
        )
    # private in torch, but the only loop that its exporter knows; imported here, as it takes long
    from torch._higher_order_ops.scan import scan_op

    rates = a.t()  # (N, E)

    def block(
        before: Tensor, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor]:
        decay = torch.exp(delta.unsqueeze(2) * rates)  # (K, B, N, E)
        added = (delta * u).unsqueeze(2) * b.unsqueeze(3)  # (K, B, N, E)
        states = [before]  # (1, B, N, E)
        for decay_t, added_t in zip(decay.split(1), added.split(1), strict=True):
            states.append(added_t + decay_t * states[-1])
        y = (torch.cat(states[1:]) * c.unsqueeze(3)).sum(2)  # (K, B, E)
        return states[-1].clone(), y

    start = u.new_zeros(1, u.shape[0], a.shape[1], u.shape[1])
    blocks = [_blocks(x) for x in (u, delta, b, c)]  # each (L/K, K, B, E | N)
    _, y = scan_op(block, [start], blocks, (rates,))  # (L/K, K, B, E)
    return y.flatten(0, 1)[: u.shape[2]].permute(1, 2, 0) + u * d.unsqueeze(1)


def _blocks(x: Tensor) -> Tensor:
    """x (B, X, L) as (L/K, K, B, X), zero beyond L, which leaves the state as it is."""
    padded = F.pad(x, (0, -x.shape[2] % BLOCK))
    return padded.permute(2, 0, 1).unflatten(0, (-1, BLOCK))
