"""What a training step minimises, and how often the remembered value came out right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ReadBatch


class RecallLoss(NamedTuple):
    """Cross-entropies as scalars, and the share of value tokens that are the most likely one."""

    value: Tensor
    rest: Tensor
    accuracy: float


def recall_loss(logits: Sequence[Tensor], batches: Sequence[ReadBatch]) -> RecallLoss:
    """Cross-entropy of the targets that count, that of the value apart from the rest.

    Args:
        logits: (M, vocabulary) for the M targets that count in each batch.
        batches: what was read.
    """
    expected = [batch.expected() for batch in batches]
    losses = torch.cat(
        [
            F.cross_entropy(ours.float(), targets.to(ours.device), reduction="none")
            for ours, (targets, _) in zip(logits, expected, strict=True)
        ]
    )
    is_value = torch.cat([weights > 0 for _, weights in expected]).to(losses.device)
    with torch.no_grad():
        right = torch.cat(
            [ours.argmax(-1) == targets.to(ours.device) for ours, (targets, _) in zip(logits, expected, strict=True)]
        )
    value = losses[is_value].mean() if is_value.any() else losses.new_zeros(())
    rest = losses[~is_value].mean() if (~is_value).any() else losses.new_zeros(())
    return RecallLoss(value, rest, float(right[is_value].float().mean()) if is_value.any() else 0.0)


def frozen_divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    """KL(frozen || with memory) in nats per token, of logits (M, vocabulary)."""
    ours = F.log_softmax(logits.float(), -1)
    theirs = F.log_softmax(frozen.float(), -1)
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
