"""The recurrence in chunks: matrix products within a chunk, a loop only over chunks.

Row i of the state never mixes with another row, so each row is a gated delta rule with scalar gates. Where all rows
share their gates they share all factors as well, and one solve does for them. Within a chunk of C tokens with entry
state S_0 and, for one row, decay(t, j) = prod_{j < i < t} keep_i:

    w_t = write_t v_t - erase_t (decay(t, 0) S_0 k_t + sum_{j<t} decay(t, j) (k_j . k_t) w_j)
    o_t = decay(t, 0) S_0 q_t + sum_{j<t} decay(t, j) (k_j . q_t) w_j
    S_C = decay(C+1, 0) S_0 + sum_j decay(C+1, j) w_j k_j^T

The first line is a unit lower-triangular solve. Decays are summed as logarithms over exactly the tokens they
span: a difference of two prefix sums cancels in float32 after strong forgetting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.recurrence.gates import Gates, mask_gates, mask_reads

CHUNK = 64
"""Tokens per chunk. The pairwise factors cost C^2 per row, the loop over chunks T / C steps."""


def delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: Tensor,
    valid: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Read and write a sequence chunk by chunk. Shapes as in the package docstring."""
    full = mask_gates(gates, valid)
    reads = []
    for start in range(0, q.shape[1], chunk):
        part = slice(start, start + chunk)
        out, state = _one_chunk(q[:, part], k[:, part], v[:, part], Gates(*(g[:, part] for g in full)), state)
        reads.append(out)
    if not reads:
        return torch.zeros_like(q), state
    return mask_reads(torch.cat(reads, dim=1) if len(reads) > 1 else reads[0], valid), state


def _one_chunk(q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, C, r)
    keep, erase, write = (g.permute(0, 2, 3, 1) for g in gates)  # (B, H, g, C), g being r or 1
    decay = _decays(keep)  # (B, H, g, C + 1, C + 1)
    inner = decay[..., :-1, 1:]  # from the write of token j to the read of token t; zero unless j < t
    entry = decay[..., :-1, 0]  # from the entry state to token t, (B, H, g, C)

    key_key = (k @ k.transpose(-1, -2))[:, :, None]  # (B, H, 1, C, C), [t, j]
    query_key = (q @ k.transpose(-1, -2))[:, :, None]
    held = entry * (state @ k.transpose(-1, -2))  # (B, H, r, C)
    target = write * v.transpose(-1, -2) - erase * held
    factors = erase[..., None] * inner * key_key  # (B, H, g, C, C); the unit diagonal is implied, the stored one zero
    if factors.shape[2] == 1:
        w = _solve(factors[:, :, 0], target.transpose(-1, -2)).transpose(-1, -2)
        written = ((inner * query_key)[:, :, 0] @ w.transpose(-1, -2)).transpose(-1, -2)
    else:
        w = _solve(factors, target[..., None]).squeeze(-1)
        written = ((inner * query_key) @ w[..., None]).squeeze(-1)  # (B, H, r, C)

    out = entry * (state @ q.transpose(-1, -2)) + written
    after = decay[..., -1, 0, None] * state + (decay[..., -1, 1:] * w) @ k
    return out.permute(0, 3, 1, 2), after


def _solve(factors: Tensor, target: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(factors, target, upper=False, unitriangular=True)
    return solved


def _decays(keep: Tensor) -> Tensor:
    """Products of keep over the tokens strictly between two positions.

    Args:
        keep: (..., C).

    Returns:
        (..., C + 1, C + 1): entry [t, j] is prod_{j <= i < t} keep_i (tokens counted from 0), which is
        the decay from position j (0: the entry state, j: after token j) to just before token t; zero where the
        write at j is not before t.
    """
    size = keep.shape[-1] + 1
    log_keep = keep.clamp_min(torch.finfo(keep.dtype).tiny).log()
    # Row t of the summand holds log keep of token t - 1; summing down a column from below the diagonal
    # gives exactly the tokens between, with nothing to cancel.
    steps = torch.nn.functional.pad(log_keep, (1, 0))  # (..., C + 1)
    below = torch.ones(size, size, dtype=torch.bool, device=keep.device).tril(-1)
    sums = steps[..., :, None].expand(*steps.shape, size).masked_fill(~below, 0.0).cumsum(-2)
    # Column j >= 1 is "after token j - 1 wrote": its own keep is part of the past, so it starts at the diagonal.
    at_or_below = torch.ones(size, size, dtype=torch.bool, device=keep.device).tril()
    return sums.masked_fill(~at_or_below, float("-inf")).exp()
