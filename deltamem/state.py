"""`MemoryState`: what a conversation left behind, as a value.

A state can be copied, compared, saved, stacked into a batch and handed to another session. It knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltamem.errors import StateError


@dataclass(frozen=True)
class OpenSegment:
    """A segment that is being written across calls (SSW): the running sum of its hidden states.

    Attributes:
        sums: one (B, hidden) float32 tensor per adapted layer.
        counts: tokens so far, (B,).
    """

    sums: tuple[Tensor, ...]
    counts: Tensor


@dataclass(frozen=True, eq=False)
class MemoryState:
    """The state matrices of all adapted layers.

    Attributes:
        tensor: (layers, B, H, r, r) float32; row i of a matrix is a value index, column j a key index.
        layers: indices of the adapted layers, in the order of the tensor's first axis.
        segment: the open segment, where one is being written.

    Raises:
        StateError: the tensor's shape does not go with the layers.
    """

    tensor: Tensor
    layers: tuple[int, ...]
    segment: OpenSegment | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.tensor.shape)
        if len(shape) != 5 or shape[0] != len(self.layers) or shape[3] != shape[4]:
            raise StateError(f"a state is (layers, batch, heads, r, r) for {len(self.layers)} layers, not {shape}")

    @property
    def batch_size(self) -> int:
        """Number of sequences B."""
        return self.tensor.shape[1]

    def clone(self) -> MemoryState:
        """A copy that shares nothing and carries no gradient."""
        segment = self.segment
        if segment is not None:
            segment = OpenSegment(tuple(s.detach().clone() for s in segment.sums), segment.counts.clone())
        return MemoryState(self.tensor.detach().clone(), self.layers, segment)

    def select(self, rows: Sequence[int]) -> MemoryState:
        """The sequences with these batch indices, in this order; an index may come several times."""
        index = torch.as_tensor(list(rows), device=self.tensor.device)
        segment = self.segment
        if segment is not None:
            segment = OpenSegment(tuple(s[index] for s in segment.sums), segment.counts[index])
        return MemoryState(self.tensor[:, index], self.layers, segment)

    @staticmethod
    def stack(states: Sequence[MemoryState]) -> MemoryState:
        """Several states as one batch.

        Raises:
            StateError: they belong to different layers, or one has an open segment.
        """
        if not states or any(s.layers != states[0].layers for s in states):
            raise StateError("only states of the same layers can be stacked")
        if any(s.segment is not None for s in states):
            raise StateError("a state with an open segment cannot be stacked; close the segment first")
        return MemoryState(torch.cat([s.tensor for s in states], dim=1), states[0].layers)

    def matrices(self) -> NDArray[np.float32]:
        """The first sequence's state as it is kept on disk, (layers, H, r, r); a copy."""
        return np.array(self.tensor[:, 0].detach().float().cpu().numpy(), dtype=np.float32, order="C")

    @classmethod
    def of(cls, matrices: NDArray[np.float32], layers: tuple[int, ...]) -> MemoryState:
        """A state of batch 1 from matrices (layers, H, r, r); a copy."""
        return cls(torch.from_numpy(matrices[:, None].copy()), layers)

    def equal(self, other: MemoryState) -> bool:
        """True when layers and every number are the same."""
        return self.layers == other.layers and torch.equal(self.tensor.cpu(), other.tensor.cpu())

    def is_finite(self) -> bool:
        """False when any number is NaN or infinite."""
        return bool(torch.isfinite(self.tensor).all())

    def norms(self) -> Tensor:
        """Frobenius norm of every matrix, (layers, B, H)."""
        norms: Tensor = torch.linalg.matrix_norm(self.tensor)
        return norms
