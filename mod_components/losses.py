"""MOD's losses as pure functions (the segmentation loss is MONAI's ``DiceFocalLoss``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "NoSegmentationLoss",
    "class_loss",
    "reconstruction_loss",
    "teacher_probabilities",
    "token_loss",
]


def teacher_probabilities(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's assignment of features to prototypes, P = softmax((h'(F') − c) / τ_t).

    Args:
        logits: output of the teacher's head (..., K), dimensionless.
        centre: moving mean of those outputs (K,).
        temperature: τ_t.

    Returns:
        Probabilities (..., K) in float32, without a gradient.
    """
    return ((logits.detach().float() - centre.float()) / temperature).softmax(dim=-1)


def token_loss(
    student_logits: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy between teacher and student at masked tokens (MOD, Eq. 1, for one view).

    The mean is taken over each sample's masked tokens first and then over samples, so that a batch
    split over processes gives the same value as the whole batch.

    Args:
        student_logits: the student head's output for the masked view (B, N, K).
        teacher: the teacher's probabilities for the same, unmasked view (B, N, K).
        mask: m_i, 1 where token i is masked (B, N).
        temperature: τ_s.

    Returns:
        A scalar, in nats. Samples without a masked token count 0.
    """
    log_q = (student_logits.float() / temperature).log_softmax(dim=-1)
    cross_entropy = -(teacher * log_q).sum(dim=-1)  # (B, N)
    mask = mask.to(cross_entropy.dtype)
    return ((mask * cross_entropy).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def class_loss(student_logits: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy between the class tokens of two views (one direction of MOD, Eq. 2).

    Args:
        student_logits: the student head's output for one masked view (B, K).
        teacher: the teacher's probabilities for the *other* view (B, K).
        temperature: τ_s.

    Returns:
        A scalar, in nats.
    """
    log_q = (student_logits.float() / temperature).log_softmax(dim=-1)
    return -(teacher * log_q).sum(dim=-1).mean()


def reconstruction_loss(
    reconstruction: Tensor, target: Tensor, mask: Tensor, eps: float = 1e-6
) -> Tensor:
    """Mean absolute error over masked voxels (MOD, Eq. 4, for one view).

    Args:
        reconstruction: the Dense Predictor's output (B, C, D, H, W), in units of the input.
        target: the unmasked view (B, C, D, H, W).
        mask: 1 at voxels that count (B, 1, D, H, W); all channels are masked together.
        eps: keeps a sample without a masked voxel at 0 instead of 0/0.

    Returns:
        A scalar: per sample Σ M |recon − target| / (C Σ M + eps), then the mean over the batch.
    """
    mask = mask.float()
    error = mask * F.l1_loss(reconstruction.float(), target.float(), reduction="none")
    per_sample = error.flatten(1).sum(1) / (target.shape[1] * mask.flatten(1).sum(1) + eps)  # (B,)
    return torch.mean(per_sample)


class NoSegmentationLoss(nn.Module):
    """In place of the segmentation loss: 0, so that MOD's losses alone teach the encoder.

    For a start without labels, whose weights a training begins with (``--init_from``). Depends on
    the logits, as several processes wait for the gradients of the decoder.
    """

    def forward(self, logits: Tensor, _labels: Tensor) -> Tensor:
        """Return 0 for logits and labels (B, 3, D, H, W)."""
        return 0 * logits.sum()
