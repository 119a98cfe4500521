"""What a training step minimises, and how often the remembered value came out right."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.training.batches import ReadBatch


class RecallLoss(NamedTuple):
    """Cross-entropies as scalars, and the share of value tokens that are the most likely one."""

    value: Tensor
    rest: Tensor
    accuracy: float


def recall_loss(logits: Tensor, batch: ReadBatch) -> RecallLoss:
    """Cross-entropy of the targets that count (M, vocabulary), that of the value apart from the rest."""
    targets, weights = batch.targets.to(logits.device), batch.weights.to(logits.device)
    present = targets != -100
    chosen, wanted, is_value = logits.float(), targets[present], weights[present] > 0
    losses = F.cross_entropy(chosen, wanted, reduction="none")
    with torch.no_grad():
        right = (chosen[is_value].argmax(-1) == wanted[is_value]).float().mean()
    value = losses[is_value].mean() if is_value.any() else losses.new_zeros(())
    rest = losses[~is_value].mean() if (~is_value).any() else losses.new_zeros(())
    return RecallLoss(value, rest, float(right) if is_value.any() else 0.0)


def frozen_divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    """KL(frozen || with memory) in nats per token, of logits (M, vocabulary)."""
    ours = F.log_softmax(logits.float(), -1)
    theirs = F.log_softmax(frozen.float(), -1)
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
