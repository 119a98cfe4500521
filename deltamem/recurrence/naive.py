"""The token loop: the definition of the recurrence, in the dtype it is given (float64 included)."""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.recurrence.gates import Gates, mask_gates, mask_reads


def delta_rule_naive(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read and write one token after another. Shapes as in the package docstring."""
    keep, erase, write = mask_gates(gates, valid)
    reads = []
    for t in range(q.shape[1]):
        q_t, k_t, v_t = q[:, t], k[:, t], v[:, t]  # (B, H, r)
        reads.append(torch.einsum("bhij,bhj->bhi", state, q_t))
        held = torch.einsum("bhij,bhj->bhi", state, k_t)  # what the key retrieves now
        gain = write[:, t] * v_t - erase[:, t] * held
        if keep is not None:
            state = keep[:, t, :, :, None] * state
        state = state + gain[..., None] * k_t[:, :, None, :]
    if not reads:
        return torch.zeros_like(q), state
    return mask_reads(torch.stack(reads, dim=1), valid), state
