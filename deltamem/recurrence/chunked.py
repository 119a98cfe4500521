"""The recurrence in chunks: matrix products over all chunks at once, and one small product a chunk to join them.

Row i of the state never mixes with another row, so each row is a gated delta rule with scalar gates. Where all rows
share their gates they share all factors as well, and one solve does for them. Within a chunk of C tokens with entry
state S_0 and, for one row, decay(t, j) = prod_{j < i < t} keep_i:

    w_t = write_t v_t - erase_t (decay(t, 0) S_0 k_t + sum_{j<t} decay(t, j) (k_j . k_t) w_j)
    o_t = decay(t, 0) S_0 q_t + sum_{j<t} decay(t, j) (k_j . q_t) w_j
    S_C = decay(C+1, 0) S_0 + sum_j decay(C+1, j) w_j k_j^T

The first line is a unit lower-triangular solve and linear in S_0, w = U - W S_0^T, so that a chunk is an affine map of
its entry state, S_C = S_0 M + N. U, W, M and N need no state: they are worked out for all chunks side by side, and only
S M + N is left to be done one chunk after another.

Decays are summed as logarithms over exactly the tokens they span: a difference of two prefix sums cancels in float32
after strong forgetting.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.recurrence.gates import Gates, mask_gates, mask_reads


def chunk_size(tokens: int, rows: int) -> int:
    """Tokens per chunk: the pairwise factors cost C^2 for every row with gates of its own, the loop T / C steps.

    Measured on a CPU with benchmarks/recurrence.py.
    """
    if rows == 1:
        return 64
    return 32 if tokens <= 512 else 16


def delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: Tensor,
    valid: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Read and write a sequence chunk by chunk. Shapes as in the package docstring."""
    reads, state = _in_chunks(q, k, v, gates, state, valid, chunk)
    assert reads is not None
    return reads, state


def delta_write_chunked(
    k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """Write a sequence chunk by chunk; nothing reads. The state after it."""
    return _in_chunks(None, k, v, gates, state, valid, chunk)[1]


def _in_chunks(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: Tensor,
    valid: Tensor | None,
    chunk: int | None,
) -> tuple[Tensor | None, Tensor]:
    tokens, rank = k.shape[1], k.shape[3]
    if not tokens:
        return None if q is None else torch.zeros_like(q), state
    gates = mask_gates(gates, valid)
    rows = gates.write.shape[-1]  # r, or 1 where all rows of a state share their gates
    size = min(chunk or chunk_size(tokens, rows), tokens)
    count = -(-tokens // size)

    def cut(x: Tensor, fill: float = 0.0) -> Tensor:
        """(B, T, H, n) as (B, H, chunks, C, n); what is missing at the end writes nothing."""
        if count * size > tokens:
            x = F.pad(x, (0, 0, 0, 0, 0, count * size - tokens), value=fill)
        chunks: Tensor = x.unflatten(1, (count, size)).permute(0, 3, 1, 2, 4)
        return chunks

    k = cut(k)[:, :, :, None]  # (B, H, N, 1, C, r)
    v = cut(v).unflatten(-1, (rows, rank // rows)).transpose(-3, -2)  # (B, H, N, g, C, r / g)
    erase, write = (cut(g).transpose(-1, -2)[..., None] for g in (gates.erase, gates.write))  # (B, H, N, g, C, 1)

    # decay: from the write of token j to the read of token t, entry: from the entry state to token t.
    pairs = k @ k.mT
    forgets = gates.keep is not None
    if gates.keep is not None:
        decay = _decays(cut(gates.keep, 1.0).transpose(-1, -2))  # (B, H, N, g, C + 1, C + 1)
        inner, entry = decay[..., :-1, 1:], decay[..., :-1, :1]
        last, total = decay[..., -1, 1:, None], decay[..., -1:, :1]
        pairs, entry_keys = pairs * inner, entry * k
    else:
        pairs, entry_keys = pairs.tril(-1), k
    target = torch.cat([write * v, (erase * entry_keys).expand(*write.shape[:-1], rank)], -1)
    # The unit diagonal of the factors is implied, the stored one is zero.
    solved = torch.linalg.solve_triangular(erase * pairs, target, upper=False, unitriangular=True)
    own, held = solved.split([rank // rows, rank], -1)  # U, W: w = U - W S_0^T

    kept = k * last if forgets else k
    added = own.mT @ kept  # N, (B, H, N, g, r / g, r)
    passed = -(held.mT @ kept)  # M
    passed = passed + total * torch.eye(rank, dtype=k.dtype, device=k.device) if forgets else _plus_identity(passed)

    entered = []
    now = state.unflatten(2, (rows, rank // rows))  # (B, H, g, r / g, r)
    for at in range(count):
        entered.append(now)
        now = now @ passed[:, :, at] + added[:, :, at]
    after = now.flatten(2, 3)
    if q is None:
        return None, after

    asked = cut(q)[:, :, :, None]
    queries = asked @ k.mT
    queries, entry_queries = (queries * inner, entry * asked) if forgets else (queries.tril(-1), asked)
    before = torch.stack(entered, 2)  # (B, H, N, g, r / g, r)
    out = queries @ own + (entry_queries - queries @ held) @ before.mT  # (B, H, N, g, C, r / g)
    reads = out.transpose(-3, -2).flatten(-2).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens]
    return mask_reads(reads, valid), after


def _plus_identity(x: Tensor) -> Tensor:
    return x + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


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
    steps = F.pad(log_keep, (1, 0))  # (..., C + 1)
    below = torch.ones(size, size, dtype=torch.bool, device=keep.device).tril(-1)
    sums = steps[..., :, None].expand(*steps.shape, size).masked_fill(~below, 0.0).cumsum(-2)
    # Column j >= 1 is "after token j - 1 wrote": its own keep is part of the past, so it starts at the diagonal.
    return sums.exp().tril()
