"""Figures for each layer and head of a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrices = NDArray[np.float32]
"""State matrices of all adapted layers, (layers, heads, r, r) float32; row i is a value index, column j a key index."""


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


def summarize(matrices: Matrices, before: Matrices, layers: Sequence[int]) -> list[HeadSummary]:
    """Figures for every layer and head of a state, and how the last turn changed it.

    Args:
        matrices: the state.
        before: the state to compare it with.
        layers: numbers of the layers in the backbone.
    """
    ranks = effective_rank(matrices)
    summaries = []
    for i, layer in enumerate(layers):
        for head in range(matrices.shape[1]):
            matrix = matrices[i, head]
            norm = float(np.linalg.norm(matrix))
            summaries.append(
                HeadSummary(
                    layer=layer,
                    head=head,
                    norm=norm,
                    largest=float(matrix.flat[np.abs(matrix).argmax()]),
                    effective_rank=float(ranks[i, head]),
                    change=change_between(before[i, head], matrix),
                )
            )
    return summaries


def effective_rank(matrices: Matrices) -> Matrices:
    """Effective rank of matrices (..., r, r): exp of the entropy of their singular values; 0 where all are zero."""
    values = np.linalg.svd(matrices, compute_uv=False)
    total = values.sum(-1, keepdims=True)
    shares = values / np.maximum(total, 1e-30)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0).astype(np.float32)


def change_between(before: Matrices, after: Matrices) -> float:
    """Norm of the change over the norm of what came out; 1 where it began empty, 0 where nothing is left."""
    norm = float(np.linalg.norm(after))
    return float(np.linalg.norm(after - before)) / norm if norm else 0.0


def matrix_rows(matrices: Matrices, layers: Sequence[int], layer: int, head: int = 0) -> list[list[float]]:
    """One matrix as rows of numbers, for drawing.

    Raises:
        KeyError: the state has no such layer or head.
    """
    if layer not in layers or not 0 <= head < matrices.shape[1]:
        raise KeyError(layer)
    rows: list[list[float]] = matrices[list(layers).index(layer), head].tolist()
    return rows
