"""From beta and lambda to the three factors of the update, for every `state_update_mode`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Gates(NamedTuple):
    """keep, erase and write, each (B, T, H, r), or (B, T, H, 1) where all rows of a state share one."""

    keep: Tensor
    erase: Tensor
    write: Tensor


def gates_from(beta: Tensor, lam: Tensor, mode: str) -> Gates:
    """The table of update modes.

    Args:
        beta: write gate in (0, 1), (B, T, H, r) or (B, T, H, 1).
        lam: retention gate of the same shape.
        mode: ``standard`` (lam, beta, beta), ``lambda_outside`` (lam, lam*beta, beta) or ``no_lambda``
            (1, beta, beta).
    """
    if mode == "standard":
        return Gates(lam, beta, beta)
    if mode == "lambda_outside":
        return Gates(lam, lam * beta, beta)
    if mode == "no_lambda":
        return Gates(torch.ones_like(beta), beta, beta)
    raise ValueError(f"unknown state_update_mode {mode!r}")


def mask_gates(gates: Gates, written: Tensor | None) -> Gates:
    """Gates with those of tokens not written (B, T) set so that the state passes through unchanged."""
    if written is None:
        return gates
    here = written[:, :, None, None]
    keep, erase, write = gates
    return Gates(keep.masked_fill(~here, 1.0), erase.masked_fill(~here, 0.0), write.masked_fill(~here, 0.0))


def mask_reads(reads: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the reads of padding."""
    return reads if valid is None else reads.masked_fill(~valid[:, :, None, None], 0.0)
