"""The gated delta rule over a sequence: one signature, several implementations.

`naive` is the definition and the oracle; `chunked` is for training and prompts; `step` is for decoding; `kernels` and
`token_kernel` are those two in Triton, for a GPU. They agree to 1e-10 in float64 and 1e-5 in float32
(tests/test_recurrence.py, tests/test_kernels.py). `delta_rule` picks one.

Shapes used throughout: B sequences, T tokens, H state heads, r the rank.

    q, k, v             (B, T, H, r)
    keep, erase, write  (B, T, H, r)   one gate per row of the state
    state               (B, H, r, r)   row i is a value index, column j a key index
    valid               (B, T) bool    False for padding, or None

Each token reads first and writes then (arXiv 2605.12357, the delta-rule update):

    o_t = S_{t-1} q_t
    S_t = diag(keep) S_{t-1} - diag(erase) (S_{t-1} k_t) k_t^T + diag(write) v_t k_t^T

A token that is not valid reads zero and leaves S as it was.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from deltamem.recurrence.chunked import delta_rule_chunked, delta_write_chunked
from deltamem.recurrence.gates import Gates, gates_from, mask_gates
from deltamem.recurrence.naive import delta_rule_naive
from deltamem.recurrence.step import delta_rule_step

__all__ = [
    "Gates",
    "delta_rule",
    "delta_rule_chunked",
    "delta_rule_naive",
    "delta_rule_step",
    "delta_write",
    "delta_write_chunked",
    "gates_from",
    "mask_gates",
    "uses_kernels",
]


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read and write a sequence with the fastest implementation for its length.

    Returns:
        The reads (B, T, H, r) and the state after the last token (B, H, r, r).
    """
    if q.shape[1] == 1:
        return delta_rule_step(q, k, v, gates, state, valid)
    if uses_kernels(q, q.shape[3]) and q.dtype == torch.float32:
        from deltamem.recurrence.kernels import delta_rule_kernels

        return delta_rule_kernels(q, k, v, gates, state, valid)
    return delta_rule_chunked(q, k, v, gates, state, valid)


def delta_write(k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None) -> Tensor:
    """Write a sequence of which nothing reads: the state after the last token (B, H, r, r)."""
    if k.shape[1] == 1 or uses_kernels(k, k.shape[3]):
        return delta_rule(k, k, v, gates, state, valid)[1]
    return delta_write_chunked(k, v, gates, state, valid)


def uses_kernels(x: Tensor, rank: int) -> bool:
    """Whether Triton kernels are to work on x, a sequence or a single token: on a CUDA GPU, but for
    DELTAMEM_KERNELS=torch in the environment. On an H200 a prompt of 8,192 tokens takes 1.11 times the frozen
    backbone's time with them, and 4.15 times without; a token 48.9 and 61.3 ms
    (benchmarks/gpu-nvidia-h200-2026-11-27.md).
    """
    return _fits(x, rank) and os.environ.get("DELTAMEM_KERNELS") != "torch"


def _fits(x: Tensor, rank: int) -> bool:
    return x.is_cuda and rank & (rank - 1) == 0 and 2 <= rank <= 32 and _triton_there()


@lru_cache(maxsize=1)
def _triton_there() -> bool:
    return find_spec("triton") is not None
