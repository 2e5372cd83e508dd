"""The computation behind the selective scan: values and gradients, in chunks that fit a cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward", "forward_keeping", "one_thread", "plan", "script"]

# The sequence is worked through in groups of K = chunks × steps positions, small enough for the
# processor's cache. Inside a group all chunks are stepped through side by side: once from zero, to
# find what each adds to the state; then, when the states at the chunks' starts have been chained,
# once more from the right states. The backward pass needs the states in reverse order. Only those
# at the groups' starts are kept; a group's other states are computed again, and the gradients of
# the states then come from the same scan, run from the end.
#
# The functions up to _traced are also compiled by torch.jit.script, hence their plain style.
# Matrix products are written with out=, which autocast leaves alone.


def plan(row: int, length: int, on_cpu: bool) -> tuple[int, int, int]:
    """Groups, chunks and steps for ``length`` positions with ``row`` = B N E states each."""
    budget = 800_000 if on_cpu else 16_000_000  # 3.2 MB: three such buffers fit a level 3 cache
    size = min(length, max(16, budget // row))
    groups = (length + size - 1) // size
    # where a position has many states, a step over several chunks saves no time
    chunks = 1 if on_cpu and row > 4096 else int(math.sqrt(size))
    steps = (length + groups * chunks - 1) // (groups * chunks)
    size = chunks * steps  # rounded up, so that fewer groups may do
    return (length + size - 1) // size, chunks, steps


def _rows(x: Tensor, start: int, size: int, dtype: torch.dtype) -> Tensor:
    """Positions start ... start + size of x (B, X, L) as rows (size, B, X), zero beyond L."""
    batch, channels = x.shape[0], x.shape[1]
    part = x[:, :, start : start + size]
    if part.shape[2] < size:  # a step with delta = u = 0 leaves the state as it is
        part = F.pad(part, (0, size - part.shape[2]))
    if part.stride(1) == 1:
        return part.permute(2, 0, 1).to(dtype).contiguous()
    # transposing a contiguous matrix is several times as fast as a strided copy
    matrix = part.to(dtype).contiguous().view(batch * channels, size)
    return matrix.t().contiguous().view(size, batch, channels)


def _write_rows(rows: Tensor, x: Tensor, start: int) -> None:
    """Write rows (size, B, X) to the positions start ... start + size of x (B, X, L), up to L."""
    size, batch, channels = rows.shape
    part = x[:, :, start : start + size]
    turned = rows.permute(1, 2, 0)
    if x.stride(1) != 1:
        turned = rows.view(size, batch * channels).t().contiguous().view(batch, channels, size)
    part.copy_(turned[:, :, : part.shape[2]])


def _steps(x: Tensor, chunks: int) -> list[Tensor]:
    """The steps of x (K, ...): of each the positions (chunks, M) that it takes in every chunk."""
    return list(x.view(chunks, x.shape[0] // chunks, -1).unbind(1))


def _scan(
    decays: list[Tensor], xs: list[Tensor], before: Tensor, chunk_decay: Tensor, reverse: bool
) -> None:
    """Replace x by h, where h_t = x_t + decay_t h_{t-1}, in every chunk.

    Args:
        decays: per step (chunks, M), in the order of the recurrence.
        xs: likewise; these become the states.
        before: the state (M,) before the first position.
        chunk_decay: the product (chunks, M) of each chunk's decays.
        reverse: the recurrence runs from the last chunk to the first.
    """
    chunks = chunk_decay.shape[0]
    state = before.unsqueeze(0)
    if chunks > 1:
        added = xs[0].clone()  # (chunks, M): the state at each chunk's end, from zero at its start
        for t in range(1, len(xs)):
            torch.addcmul(xs[t], decays[t], added, out=added)
        state = torch.empty_like(added)  # at each chunk's start
        ends, totals, starts = added.unbind(0), chunk_decay.unbind(0), state.unbind(0)
        if reverse:
            ends, totals, starts = ends[::-1], totals[::-1], starts[::-1]
        starts[0].copy_(before)
        for c in range(chunks - 1):
            torch.addcmul(ends[c], totals[c], starts[c], out=starts[c + 1])
    for t in range(len(xs)):
        state = torch.addcmul(xs[t], decays[t], state, out=xs[t])


def _rates(a: Tensor, dtype: torch.dtype) -> Tensor:
    """A (E, N) as (N, E) for exp2, which torch computes three times as fast as exp."""
    return (a.to(dtype) * 1.4426950408889634).t().contiguous()


def _inputs(u: Tensor, delta: Tensor, b: Tensor, rates: Tensor, decay: Tensor, h: Tensor) -> None:
    """Fill decay, and h[1:] with what every position adds; decay may have a position more."""
    torch.mul(delta.unsqueeze(2), rates, out=decay)
    decay.exp2_()
    torch.mul((delta[: u.shape[0]] * u).unsqueeze(2), b.unsqueeze(3), out=h[1:])


def _chunk_decay(delta: Tensor, rates: Tensor, chunks: int) -> Tensor:
    """The product (chunks, B N E) of each chunk's decays, from its step sizes (K, B, E)."""
    total = delta.view(chunks, -1, delta.shape[1], 1, delta.shape[2]).sum(1)
    return (total * rates).exp2_().view(chunks, -1)


def _over_states(weights: Tensor, x: Tensor) -> Tensor:
    """The sum over N of weights (K, B, N) times x (K, B, N, E), which is (K, B, E)."""
    size, batch, states, channels = x.shape
    out = torch.empty((size * batch, 1, channels), dtype=x.dtype, device=x.device)
    torch.bmm(weights.view(-1, 1, states), x.view(-1, states, channels), out=out)
    return out.view(size, batch, channels)


def _over_channels(x: Tensor, weights: Tensor) -> Tensor:
    """The sum over E of x (K, B, N, E) times weights (K, B, E), which is (K, B, N)."""
    size, batch, states, channels = x.shape
    out = torch.empty((size * batch, states, 1), dtype=x.dtype, device=x.device)
    # as a transposed row: MKL is eight times as slow with a column
    column = weights.view(-1, 1, channels).transpose(1, 2)
    torch.bmm(x.view(-1, states, channels), column, out=out)
    return out.view(size, batch, states)


def forward(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """y and, if they are to be kept, the states (groups, B, N, E) at the groups' starts."""
    batch, channels, length = u.shape
    row = (batch, a.shape[1], channels)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    groups, chunks, steps = plan(row[0] * row[1] * row[2], length, u.device.type == "cpu")
    size = chunks * steps
    rates, d = _rates(a, dtype), d.to(dtype)
    decay = torch.empty((size, row[0], row[1], row[2]), dtype=dtype, device=u.device)
    # h[k] is the state before the group's position k, h[k + 1] the one after it
    h = torch.empty((size + 1, row[0], row[1], row[2]), dtype=dtype, device=u.device)
    decays, hs = _steps(decay, chunks), _steps(h[1:], chunks)
    kept = groups if keep else 0
    starts = torch.empty((kept, row[0], row[1], row[2]), dtype=dtype, device=u.device)
    y = torch.empty_like(u)
    h[0].zero_()
    for group in range(groups):
        if keep:
            starts[group].copy_(h[0])
        first = group * size
        u_rows, delta_rows = _rows(u, first, size, dtype), _rows(delta, first, size, dtype)
        _inputs(u_rows, delta_rows, _rows(b, first, size, dtype), rates, decay, h)
        _scan(decays, hs, h[0].view(-1), _chunk_decay(delta_rows, rates, chunks), False)
        y_rows = _over_states(_rows(c, first, size, dtype), h[1:])
        _write_rows(y_rows.addcmul_(u_rows, d), y, first)
        h[0].copy_(h[size])
    return y, starts


def _traced(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    with torch.no_grad():  # out= wants it, also where a loaded network is called without
        return forward(u, delta, a, b, c, d, keep=False)[0]


@functools.cache
def script() -> Any:
    return torch.jit.script(_traced)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread; on a GPU this changes nothing.

    The scan is a long row of operations of a few microseconds. A second thread saves a quarter of
    the time on an idle machine, but where any other process wants the core as well, every one of
    these operations waits for the scheduler: the scan was then seen to take 200 times as long.
    Another Python thread that uses torch for the first time in the meantime starts with one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def forward_keeping(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    return forward(u, delta, a, b, c, d, keep=True)


@one_thread()
def backward(
    dy: Tensor, inputs: Sequence[Tensor], starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the inputs u, delta, A, B, C and D, from that of y."""
    u, delta, a, b, c, d = inputs
    row, dtype = starts.shape[1:], starts.dtype  # (B, N, E)
    groups, chunks, steps = plan(row.numel(), u.shape[2], u.device.type == "cpu")
    size = chunks * steps
    rates, a_turned, d_wide = _rates(a, dtype), a.to(dtype).t().contiguous(), d.to(dtype)
    # one position more than the group has: the gradient of a state needs the decay after it
    decay, h = starts.new_empty(size + 1, *row), starts.new_empty(size + 1, *row)
    g, g_after = starts.new_empty(size, *row), starts.new_zeros(row)
    decays, laters, hs, gs = (_steps(x, chunks) for x in (decay[:-1], decay[1:], h[1:], g))
    du, ddelta, da, db, dc, dd = (torch.empty_like(x) for x in inputs)
    da_sum, dd_sum = torch.zeros_like(rates), torch.zeros_like(d_wide)
    for group in reversed(range(groups)):
        first = group * size
        u_rows, b_rows, c_rows, dy_rows = (_rows(x, first, size, dtype) for x in (u, b, c, dy))
        delta_rows = _rows(delta, first, size + 1, dtype)
        h[0].copy_(starts[group])
        _inputs(u_rows, delta_rows, b_rows, rates, decay, h)
        _scan(decays, hs, h[0].view(-1), _chunk_decay(delta_rows[:-1], rates, chunks), False)
        # g_t, the gradient of h_t, is C_t dy_t + decay_{t+1} g_{t+1}
        torch.mul(dy_rows.unsqueeze(2), c_rows.unsqueeze(3), out=g)
        after = _chunk_decay(delta_rows[1:], rates, chunks)
        _scan(laters[::-1], gs[::-1], g_after.view(-1), after, True)
        g_after.copy_(g[0])
        delta_rows = delta_rows[:-1]
        _write_rows(_over_channels(h[1:], dy_rows), dc, first)
        _write_rows(_over_channels(g, delta_rows * u_rows), db, first)
        dx = _over_states(b_rows, g)  # of x = delta u
        exponent = g.mul_(decay[:-1]).mul_(h[:-1])  # the gradient of delta A
        ddelta_rows = torch.mul(exponent, a_turned, out=h[:-1]).sum(2).addcmul_(dx, u_rows)
        _write_rows(ddelta_rows, ddelta, first)
        da_sum += exponent.mul_(delta_rows.unsqueeze(2)).sum((0, 1))
        dd_sum += (dy_rows * u_rows).sum((0, 1))
        _write_rows(dx.mul_(delta_rows).addcmul_(dy_rows, d_wide), du, first)
    return du, ddelta, da.copy_(da_sum.t()), db, dc, dd.copy_(dd_sum)
