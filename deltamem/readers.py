"""What all layers read for a token, as far as gates of all of them let it through.

A joint gate says whether anything read is heard. With a second reader there are two such gates, one for each, and a
route, which says whose reads count.
"""

from __future__ import annotations

import torch
from torch import Tensor


def jointly_open(logits: Tensor) -> Tensor:
    """How far a gate of all layers stands open, 0 to 1, from the sum of their `DeltaLayer.joint_logits`."""
    # Not a sigmoid: what is shut is to read nothing at all, and what is open all there is.
    return (0.5 + 0.5 * logits).clamp(0, 1)


def shares_of(logits: Tensor) -> Tensor:
    """What each reader's reads count for, (..., readers), from the sum of layers' `DeltaLayer.joint_logits`."""
    opened = jointly_open(logits)
    if opened.shape[-1] == 1:
        return opened
    first, second, route = opened.unbind(-1)
    return torch.stack([(1 - route) * first, route * second], dim=-1)


def heard(reads: Tensor, shares: Tensor) -> Tensor:
    """What is heard of a layer's reads, (..., n), from those of each reader one after the other, (..., readers * n)."""
    each: Tensor = reads.unflatten(-1, (shares.shape[-1], -1)) * shares[..., None]
    return each.sum(-2)
