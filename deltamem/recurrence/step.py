"""One token: what decoding needs, without a loop or a solve."""

from __future__ import annotations

from torch import Tensor

from deltamem.recurrence.gates import Gates, mask_gates, mask_reads


def delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read and write a single token; T must be 1. Shapes as in the package docstring.

    Raises:
        ValueError: more than one token was given.
    """
    if q.shape[1] != 1:
        raise ValueError(f"the single step takes one token, not {q.shape[1]}")
    gates = mask_gates(gates, valid)
    erase, write = gates.erase[:, 0], gates.write[:, 0]
    read = (state @ q[:, 0, :, :, None]).squeeze(-1)  # (B, H, r)
    held = (state @ k[:, 0, :, :, None]).squeeze(-1)  # (B, H, r)
    gain = write * v[:, 0] - erase * held
    if gates.keep is not None:
        state = gates.keep[:, 0, ..., None] * state
    state = state + gain[..., None] * k[:, 0, :, None, :]
    return mask_reads(read[:, None], valid), state
