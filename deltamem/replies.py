"""How far a message tells something: it decides whether the reply to it is written (`DeltaMemConfig.reply_floor`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def opened(gates: Sequence[Tensor]) -> Tensor:
    """How far the write gates of each token stand open, (B, T), 0 to 1: the mean over layers, heads and rows.

    Args:
        gates: of every layer, (B, T, H, r or 1), as `DeltaMemory.tracing` shows them.
    """
    first = gates[0].device
    return torch.stack([of_layer.float().mean((-2, -1)).to(first) for of_layer in gates]).mean(0)
