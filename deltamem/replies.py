"""How far a message tells something: it decides whether the reply to it is written (`DeltaMemConfig.reply_floor`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def opened_by_layer(gates: Sequence[Tensor]) -> Tensor:
    """How far the write gates of each token stand open in each layer, (layers, B, T), 0 to 1: the mean over heads and
    rows.

    Args:
        gates: of every layer, (B, T, H, r or 1), as `DeltaMemory.tracing` shows them.
    """
    first = gates[0].device
    return torch.stack([of_layer.float().mean((-2, -1)).to(first) for of_layer in gates])


def opened(gates: Sequence[Tensor]) -> Tensor:
    """The same in the mean of all layers, (B, T)."""
    return opened_by_layer(gates).mean(0)
