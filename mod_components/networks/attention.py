"""Fast attention for MONAI's transformers during the passes that stop at a tap.

The passes are computed many times a training and need the feature alone, so they can take a
quicker way to the same numbers; the network's own passes stay MONAI's, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from mod_components.networks.overrides import attributes_set, kept

__all__ = ["fast_attention"]

# scores that a backward pass holds at a time: what a processor's cache holds, or a GPU is busy with
_SCORES = {"cpu": 2**22, "cuda": 2**26}


@contextmanager
def fast_attention(network: nn.Module) -> Iterator[None]:
    """Let MONAI's attention layers use fused kernels, and keep no scores for the backward pass.

    * ``SABlock`` (ViT, UNETR) takes PyTorch's fused attention where it has no dropout to draw.
    * ``WindowAttention`` (Swin) takes it too; with gradients, which MONAI's does not, the backward
      pass computes the scores again, some windows at a time. They are the largest part of what a
      Swin encoder keeps otherwise.

    The layers are as before afterwards. Results differ by rounding.

    Args:
        network: the network to run inside the context.
    """
    with attributes_set(_changes(network)):
        yield


def _changes(network: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in network.modules():
        if isinstance(module, SABlock) and _can_be_fused(module):
            yield module, "use_flash_attention", True
            # MONAI hands its rate on in eval mode too
            yield module, "dropout_rate", 0.0
        elif isinstance(module, WindowAttention) and not _drops(module.attn_drop):
            yield module, "forward", kept(_window_attention, module)


def _can_be_fused(block: SABlock) -> bool:
    plain = block.rel_positional_embedding is None and not block.save_attn
    return plain and not _drops(block.drop_weights)


def _drops(dropout: nn.Dropout) -> bool:
    return dropout.training and dropout.p > 0


def _window_attention(module: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """``WindowAttention.forward`` for windows of tokens (B·nW, n, C) and a mask (nW, n, n)."""
    b, n, c = x.shape
    qkv = module.qkv(x).reshape(b, n, 3, module.num_heads, c // module.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B·nW, heads, n, C/heads) each
    index = cast(Tensor, module.relative_position_index)[:n, :n].reshape(-1)
    bias = module.relative_position_bias_table[index].reshape(n, n, -1)
    bias = bias.permute(2, 0, 1).contiguous()  # (heads, n, n)
    x = _LeanAttention.apply(q, k, v, bias, mask, module.scale)
    return module.proj_drop(module.proj(x.transpose(1, 2).reshape(b, n, c)))


class _LeanAttention(torch.autograd.Function):
    """softmax(scale · QKᵀ + bias + mask) V; the scores are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, bias, mask)
        ctx.scale = scale
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        for part in _parts(q):
            added = _added(bias, mask, part).to(q.dtype)
            out[part] = F.scaled_dot_product_attention(
                q[part], k[part], v[part], attn_mask=added, scale=scale
            )
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, mask = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        grad_bias = torch.zeros_like(bias)
        for part in _parts(q):
            q_i, k_i, v_i, g_i = q[part] * ctx.scale, k[part], v[part], grad[part].to(q.dtype)
            scores = (q_i @ k_i.transpose(-2, -1)).to(bias.dtype).add_(_added(bias, mask, part))
            p = scores.softmax(-1)
            grads[2][part] = p.to(q.dtype).transpose(-2, -1) @ g_i
            d_p = (g_i @ v_i.transpose(-2, -1)).to(p.dtype).mul_(p)
            # of the softmax: p · (d_p − Σ p·d_p)
            d_s = d_p.sub_(p.mul_(d_p.sum(-1, keepdim=True)))
            grad_bias += d_s.sum(0)
            d_s = d_s.to(q.dtype)
            grads[0][part] = (d_s @ k_i).mul_(ctx.scale)
            grads[1][part] = d_s.transpose(-2, -1) @ q_i
        return (*grads, grad_bias, None, None)


def _parts(q: Tensor) -> Iterator[slice]:
    """Windows in pieces whose scores fit a cache."""
    scores = q.shape[1] * q.shape[2] ** 2
    windows = max(1, _SCORES.get(q.device.type, _SCORES["cuda"]) // scores)
    for start in range(0, len(q), windows):
        yield slice(start, min(start + windows, len(q)))


def _added(bias: Tensor, mask: Tensor | None, part: slice) -> Tensor:
    """What is added to the scores of these windows (1 or windows, heads, n, n)."""
    if mask is None:
        return bias[None]
    window = torch.arange(part.start, part.stop, device=mask.device) % len(mask)
    return bias + mask[window, None]
