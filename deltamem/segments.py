"""Means of hidden states over segments, for sequence-state writes (SSW)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SegmentPlan(NamedTuple):
    """Which tokens make up which segment of a call, in the order of writing.

    Attributes:
        weights: (B, M, T) float32; row m averages the tokens of the m-th segment of a sequence.
        valid: (B, M) bool; False where a sequence has fewer than M segments.
    """

    weights: Tensor
    valid: Tensor


def plan_segments(segments: Tensor, valid: Tensor | None) -> SegmentPlan:
    """Read one integer per token, (B, T), -1 where a token is in no segment.

    Segments come in ascending order of their number; numbers that no token has are passed over, and padding is
    left out.
    """
    inside = segments >= 0
    if valid is not None:
        inside = inside & valid
    rows = []
    for b in range(segments.shape[0]):
        numbers = torch.unique(segments[b][inside[b]])  # sorted
        rows.append(((segments[b] == numbers[:, None]) & inside[b]).float())  # (M_b, T)
    most = max((row.shape[0] for row in rows), default=0)
    weights = torch.zeros(len(rows), most, segments.shape[1], device=segments.device)
    for b, row in enumerate(rows):
        weights[b, : row.shape[0]] = row
    counts = weights.sum(-1)
    return SegmentPlan(weights / counts.clamp_min(1).unsqueeze(-1), counts > 0)
