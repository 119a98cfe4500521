"""What a training step minimises. Every part is a sum over tokens with its count, so that shares of a step add up."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ReadBatch

SILENT = 2e-3
"""Read gate wanted where nothing is to be read."""


class Answers(NamedTuple):
    """Losses of the answers to a batch of questions.

    Attributes:
        value: sum of the cross-entropies of value tokens.
        start: sum of those of the first tokens of answers: whether it is answered from memory at all hangs on these.
        rest: sum of those of the other tokens.
        right: number of value tokens that are the most likely one.
        chosen: log-probability of each value token, (M_value,).
    """

    value: Tensor
    start: Tensor
    rest: Tensor
    right: int
    chosen: Tensor


def answer_losses(logits: Tensor, batch: ReadBatch) -> Answers:
    """Cross-entropy of what is expected, that of the values apart from the rest.

    Args:
        logits: (M, vocabulary) for the M targets that count.
        batch: what was read.
    """
    targets, is_value, is_start = (t.to(logits.device) for t in batch.expected())
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    right = int((logits.detach().argmax(-1) == targets)[is_value].sum())
    rest = ~is_value & ~is_start
    return Answers(losses[is_value].sum(), losses[is_start].sum(), losses[rest].sum(), right, -losses[is_value])


def contrast(own: Tensor, other: Tensor) -> Tensor:
    """Sum over value tokens of -log sigmoid of how much likelier the right state makes them than another one."""
    return F.softplus(other - own).sum()


def sparsity(gates: Tensor, target: float) -> Tensor:
    """Squared distance of the mean write gate from a target."""
    return (torch.sigmoid(gates).mean() - target).square()


def towards(gates: Tensor, wanted: float) -> Tensor:
    """Mean binary cross-entropy of gates, 0 to 1, against what is wanted of them."""
    return F.binary_cross_entropy(gates.clamp(1e-6, 1 - 1e-6), torch.full_like(gates, wanted))
