"""The gated delta rule over a sequence: one signature, three implementations.

`naive` is the definition and the oracle; `chunked` is for training and prompts; `step` is for decoding. They
agree to 1e-10 in float64 and 1e-5 in float32 (tests/test_recurrence.py). `delta_rule` picks one.

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

from torch import Tensor

from deltamem.recurrence.chunked import delta_rule_chunked
from deltamem.recurrence.gates import Gates, gates_from, mask_gates
from deltamem.recurrence.naive import delta_rule_naive
from deltamem.recurrence.step import delta_rule_step

__all__ = [
    "Gates",
    "delta_rule",
    "delta_rule_chunked",
    "delta_rule_naive",
    "delta_rule_step",
    "gates_from",
    "mask_gates",
]


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read and write a sequence with the fastest implementation for its length.

    Returns:
        The reads (B, T, H, r) and the state after the last token (B, H, r, r).
    """
    fast = delta_rule_step if q.shape[1] == 1 else delta_rule_chunked
    return fast(q, k, v, gates, state, valid)
