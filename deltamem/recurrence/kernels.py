"""The recurrence on a GPU, in Triton: states stay on the chip, and chunks are worked on side by side.

A chunk is an affine map of its entry state, S -> S M + N (`chunked.py`). Forward takes three launches: every chunk's
map, token by token; the maps joined, one after another; and every chunk's reads from its entry state. Backward takes
three more: what each chunk's reads say about its entry state; those joined from the last chunk to the first; and the
gradients within every chunk, from states that are worked out again. Nothing is kept per token but what came in.

With TRITON_INTERPRET=1 in the environment the same code runs on a CPU, slowly; that is how it is tested where there
is no GPU (tests/test_kernels.py).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltamem.recurrence.gates import Gates, mask_gates, mask_reads

CHUNK = 64
"""Tokens per chunk, forward."""

CHUNK_BACK = 16
"""Tokens per chunk in the last launch backward, which holds a state for each of them."""


def delta_rule_kernels(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read and write a sequence. Shapes as in the package docstring; float32, r a power of two."""
    if not q.shape[1]:
        return torch.zeros_like(q), state
    gates = mask_gates(gates, valid)
    reads, final = _DeltaRule.apply(q, k, v, gates.keep, gates.erase, gates.write, state)
    return mask_reads(reads, valid), final


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, erase: Tensor, write: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, heads, rank = q.shape
        of_gates = erase.shape[-1]
        q, k, v, erase, write = (_flat(x) for x in (q, k, v, erase, write))
        kept = erase if keep is None else _flat(keep)  # never read where there is none
        sizes = {"T": tokens, "R": rank, "G": of_gates, "HAS_KEEP": keep is not None}
        entry = state.reshape(batch * heads, rank, rank).contiguous()
        entries, final, _ = _chunks(k, v, kept, erase, write, entry, CHUNK, sizes)
        out = torch.empty_like(q)
        _reads[batch * heads, entries.shape[1]](q, k, v, kept, erase, write, entries, out, C=CHUNK, **sizes)
        ctx.save_for_backward(q, k, v, kept, erase, write, entry)
        ctx.shape, ctx.sizes = (batch, tokens, heads, rank), sizes
        return _unflat(out, batch, heads), final.view(batch, heads, rank, rank)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept, erase, write, entry = ctx.saved_tensors
        batch, _, heads, rank = ctx.shape
        sizes = ctx.sizes
        entries, _, maps = _chunks(k, v, kept, erase, write, entry, CHUNK_BACK, sizes)
        count = entries.shape[1]
        grid = (batch * heads, count)
        d_reads = _flat(d_out)
        asked = torch.empty_like(entries)
        _asked[grid](q, k, kept, erase, d_reads, asked, C=CHUNK_BACK, **sizes)
        exits, d_entry = torch.empty_like(entries), torch.empty_like(entry)
        final = d_final.reshape(batch * heads, rank, rank).contiguous()
        _join_back[(batch * heads,)](final, maps, asked, exits, d_entry, count, R=rank, G=sizes["G"])
        d_q, d_k, d_v = (torch.empty_like(q) for _ in range(3))
        d_erase, d_write, d_keep = (torch.empty_like(erase) for _ in range(3))
        _gradients[grid](
            q, k, v, kept, erase, write, entries, exits, d_reads, d_q, d_k, d_v, d_keep, d_erase, d_write,
            C=CHUNK_BACK, **sizes,
        )  # fmt: skip
        found = [_unflat(x, batch, heads) for x in (d_q, d_k, d_v, d_keep, d_erase, d_write)]
        if not sizes["HAS_KEEP"]:
            found[3] = None  # type: ignore[call-overload]
        return (*found, d_entry.view(batch, heads, rank, rank))


def _flat(x: Tensor) -> Tensor:
    """(B, T, H, n) as (B * H, T, n)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]).contiguous()


def _unflat(x: Tensor, batch: int, heads: int) -> Tensor:
    return x.view(batch, heads, *x.shape[1:]).transpose(1, 2)


def _chunks(
    k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, entry: Tensor, size: int, sizes: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Entry states of all chunks (B * H, N, r, r), the state after the last, and the chunks' maps."""
    rows, rank, of_gates = len(entry), sizes["R"], sizes["G"]
    count = -(-sizes["T"] // size)
    maps = entry.new_empty(rows, count, of_gates, rank, rank)
    added = entry.new_empty(rows, count, rank, rank)
    _maps[(rows, count)](k, v, keep, erase, write, maps, added, C=size, **sizes)
    entries, final = torch.empty_like(added), torch.empty_like(entry)
    _join[(rows,)](entry, maps, added, entries, final, count, R=rank, G=of_gates)
    return entries, final, maps


# Kernels. A program of a grid (B * H, N) has one chunk of one head, one of a grid (B * H) one head. i is a row of the
# state (a value index), a and b are key indices. Gates have G = r rows, or one that all rows of the state share.


@triton.jit
def _of_token(pointer, at, place, T, other, N: tl.constexpr):
    """The N numbers of a token: of q, k or v, or a gate's; `other` after the last token."""
    n = tl.arange(0, N)
    return tl.load(pointer + at * N + n, mask=place + 0 * n < T, other=other)


@triton.jit
def _written(state, k_p, v_p, keep_p, erase_p, write_p, at, place, T,
             R: tl.constexpr, G: tl.constexpr, HAS_KEEP: tl.constexpr):  # fmt: skip
    """The state a token leaves."""
    k = _of_token(k_p, at, place, T, 0.0, R)
    gain = _of_token(write_p, at, place, T, 0.0, G) * _of_token(v_p, at, place, T, 0.0, R)
    gain -= _of_token(erase_p, at, place, T, 0.0, G) * tl.sum(state * k[None, :], 1)
    if HAS_KEEP:
        state = _of_token(keep_p, at, place, T, 1.0, G)[:, None] * state
    return state + gain[:, None] * k[None, :]


@triton.jit
def _maps(k_p, v_p, keep_p, erase_p, write_p, maps_p, added_p,
          T, R: tl.constexpr, G: tl.constexpr, HAS_KEEP: tl.constexpr, C: tl.constexpr):  # fmt: skip
    row, chunk, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    a, g = tl.arange(0, R), tl.arange(0, G)
    added = tl.zeros((R, R), tl.float32)
    passed = tl.zeros((G, R, R), tl.float32) + (a[None, :, None] == a[None, None, :]).to(tl.float32)
    for t in range(C):
        place = chunk * C + t
        at = row * T + place
        k = _of_token(k_p, at, place, T, 0.0, R)
        v = _of_token(v_p, at, place, T, 0.0, R)
        erase = _of_token(erase_p, at, place, T, 0.0, G)
        write = _of_token(write_p, at, place, T, 0.0, G)
        gain = write * v - erase * tl.sum(added * k[None, :], 1)
        lost = erase[:, None] * tl.sum(passed * k[None, None, :], 2)
        if HAS_KEEP:
            keep = _of_token(keep_p, at, place, T, 1.0, G)
            added = keep[:, None] * added
            passed = keep[:, None, None] * passed
        added += gain[:, None] * k[None, :]
        passed -= lost[:, :, None] * k[None, None, :]
    at = row * count + chunk
    tl.store(added_p + at * R * R + a[:, None] * R + a[None, :], added)
    tl.store(maps_p + at * G * R * R + g[:, None, None] * R * R + a[None, :, None] * R + a[None, None, :], passed)


@triton.jit
def _join(entry_p, maps_p, added_p, entries_p, final_p, count, R: tl.constexpr, G: tl.constexpr):
    row = tl.program_id(0)
    a, g = tl.arange(0, R), tl.arange(0, G)
    square = a[:, None] * R + a[None, :]
    cube = g[:, None, None] * R * R + a[None, :, None] * R + a[None, None, :]
    state = tl.load(entry_p + row * R * R + square)
    for chunk in range(count):
        at = row * count + chunk
        tl.store(entries_p + at * R * R + square, state)
        passed = tl.load(maps_p + at * G * R * R + cube)
        state = tl.sum(state[:, :, None] * passed, 1) + tl.load(added_p + at * R * R + square)
    tl.store(final_p + row * R * R + square, state)


@triton.jit
def _reads(q_p, k_p, v_p, keep_p, erase_p, write_p, entries_p, out_p,
           T, R: tl.constexpr, G: tl.constexpr, HAS_KEEP: tl.constexpr, C: tl.constexpr):  # fmt: skip
    row, chunk, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    a = tl.arange(0, R)
    state = tl.load(entries_p + (row * count + chunk) * R * R + a[:, None] * R + a[None, :])
    for t in range(C):
        place = chunk * C + t
        present = place + 0 * a < T
        at = row * T + place
        q = _of_token(q_p, at, place, T, 0.0, R)
        tl.store(out_p + at * R + a, tl.sum(state * q[None, :], 1), mask=present)
        state = _written(state, k_p, v_p, keep_p, erase_p, write_p, at, place, T, R, G, HAS_KEEP)


@triton.jit
def _asked(q_p, k_p, keep_p, erase_p, d_out_p, asked_p,
           T, R: tl.constexpr, G: tl.constexpr, HAS_KEEP: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """The gradient of a chunk's reads with respect to its entry state."""
    row, chunk, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    a = tl.arange(0, R)
    asked = tl.zeros((R, R), tl.float32)
    passed = tl.zeros((G, R, R), tl.float32) + (a[None, :, None] == a[None, None, :]).to(tl.float32)
    for t in range(C):
        place = chunk * C + t
        at = row * T + place
        q = _of_token(q_p, at, place, T, 0.0, R)
        k = _of_token(k_p, at, place, T, 0.0, R)
        d_out = _of_token(d_out_p, at, place, T, 0.0, R)
        asked += d_out[:, None] * tl.sum(passed * q[None, None, :], 2)
        lost = _of_token(erase_p, at, place, T, 0.0, G)[:, None] * tl.sum(passed * k[None, None, :], 2)
        if HAS_KEEP:
            passed = _of_token(keep_p, at, place, T, 1.0, G)[:, None, None] * passed
        passed -= lost[:, :, None] * k[None, None, :]
    tl.store(asked_p + (row * count + chunk) * R * R + a[:, None] * R + a[None, :], asked)


@triton.jit
def _join_back(final_p, maps_p, asked_p, exits_p, entry_p, count, R: tl.constexpr, G: tl.constexpr):
    row = tl.program_id(0)
    a, g = tl.arange(0, R), tl.arange(0, G)
    square = a[:, None] * R + a[None, :]
    cube = g[:, None, None] * R * R + a[None, :, None] * R + a[None, None, :]
    d_state = tl.load(final_p + row * R * R + square)
    for back in range(count):
        at = row * count + count - 1 - back
        tl.store(exits_p + at * R * R + square, d_state)
        passed = tl.load(maps_p + at * G * R * R + cube)
        d_state = tl.sum(d_state[:, None, :] * passed, 2) + tl.load(asked_p + at * R * R + square)
    tl.store(entry_p + row * R * R + square, d_state)


@triton.jit
def _store_gate(pointer, at, place, T, per_row, G: tl.constexpr):
    """The gradient of a gate from that of every row, (r)."""
    g = tl.arange(0, G)
    if G == 1:
        per_row = tl.sum(per_row, 0, keep_dims=True)
    tl.store(pointer + at * G + g, per_row, mask=place + 0 * g < T)


@triton.jit
def _gradients(q_p, k_p, v_p, keep_p, erase_p, write_p, entries_p, exits_p, d_out_p,
               d_q_p, d_k_p, d_v_p, d_keep_p, d_erase_p, d_write_p,
               T, R: tl.constexpr, G: tl.constexpr, HAS_KEEP: tl.constexpr, C: tl.constexpr):  # fmt: skip
    row, chunk, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    a, times = tl.arange(0, R), tl.arange(0, C)
    square = (row * count + chunk) * R * R + a[:, None] * R + a[None, :]
    state = tl.load(entries_p + square)
    before = tl.zeros((C, R, R), tl.float32)  # the state each token of the chunk met
    for t in range(C):
        place = chunk * C + t
        at = row * T + place
        before = tl.where(times[:, None, None] == t, state[None, :, :], before)
        state = _written(state, k_p, v_p, keep_p, erase_p, write_p, at, place, T, R, G, HAS_KEEP)
    d_state = tl.load(exits_p + square)
    for back in range(C):
        t = C - 1 - back
        place = chunk * C + t
        present = place + 0 * a < T
        at = row * T + place
        state = tl.sum(tl.where(times[:, None, None] == t, before, 0.0), 0)
        q = _of_token(q_p, at, place, T, 0.0, R)
        k = _of_token(k_p, at, place, T, 0.0, R)
        v = _of_token(v_p, at, place, T, 0.0, R)
        d_out = _of_token(d_out_p, at, place, T, 0.0, R)
        erase = _of_token(erase_p, at, place, T, 0.0, G)
        write = _of_token(write_p, at, place, T, 0.0, G)
        held = tl.sum(state * k[None, :], 1)
        gain = write * v - erase * held
        d_gain = tl.sum(d_state * k[None, :], 1)
        d_held = -(erase * d_gain)
        tl.store(d_q_p + at * R + a, tl.sum(d_out[:, None] * state, 0), mask=present)
        tl.store(d_k_p + at * R + a, tl.sum(gain[:, None] * d_state + d_held[:, None] * state, 0), mask=present)
        tl.store(d_v_p + at * R + a, d_gain * write, mask=present)
        _store_gate(d_write_p, at, place, T, d_gain * v, G)
        _store_gate(d_erase_p, at, place, T, -(d_gain * held), G)
        if HAS_KEEP:
            _store_gate(d_keep_p, at, place, T, tl.sum(d_state * state, 1), G)
            d_state = _of_token(keep_p, at, place, T, 1.0, G)[:, None] * d_state
        d_state += d_held[:, None] * k[None, :] + d_out[:, None] * q[None, :]
