"""What is in a state: figures for each layer and head. Needs no backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deltamem.state import MemoryState


@dataclass(frozen=True)
class HeadSummary:
    """One state matrix in figures.

    Attributes:
        layer: number of the layer in the backbone.
        head: number of the state head.
        norm: Frobenius norm.
        largest: entry with the largest magnitude.
        effective_rank: exponential of the entropy of the normalised singular values; 0 for an empty matrix, r at most.
        change: norm of the change in the last turn over the norm now.
    """

    layer: int
    head: int
    norm: float
    largest: float
    effective_rank: float
    change: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def summarize(state: MemoryState, before: MemoryState) -> list[HeadSummary]:
    """Figures for every layer and head of a state's first sequence, and how the last turn changed it."""
    matrices, earlier = state.tensor[:, 0].float(), before.tensor[:, 0].float()
    ranks = effective_rank(matrices)
    summaries = []
    for i, layer in enumerate(state.layers):
        for head in range(matrices.shape[1]):
            matrix = matrices[i, head]
            norm = float(matrix.norm())
            flat = matrix.flatten()
            summaries.append(
                HeadSummary(
                    layer=layer,
                    head=head,
                    norm=norm,
                    largest=float(flat[flat.abs().argmax()]),
                    effective_rank=float(ranks[i, head]),
                    change=float((matrix - earlier[i, head]).norm()) / norm if norm else 0.0,
                )
            )
    return summaries


def effective_rank(matrices: Tensor) -> Tensor:
    """Effective rank of matrices (..., r, r): exp of the entropy of their singular values; 0 where all are zero."""
    values = torch.linalg.svdvals(matrices)
    total = values.sum(-1, keepdim=True)
    shares = values / total.clamp_min(1e-30)
    entropy = -(shares * shares.clamp_min(1e-30).log()).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def matrix_rows(state: MemoryState, layer: int, head: int = 0) -> list[list[float]]:
    """One matrix as rows of numbers, for drawing.

    Raises:
        KeyError: the state has no such layer or head.
    """
    if layer not in state.layers or not 0 <= head < state.tensor.shape[2]:
        raise KeyError(layer)
    rows: list[list[float]] = state.tensor[state.layers.index(layer), 0, head].tolist()
    return rows


def change_between(before: MemoryState, after: MemoryState) -> float:
    """Norm of the change over the norm of what came out; 1 where it began empty, 0 where nothing is left."""
    norm = float(after.tensor.float().norm())
    return float((after.tensor.float() - before.tensor.float()).norm()) / norm if norm else 0.0
