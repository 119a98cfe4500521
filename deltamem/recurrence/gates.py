"""From beta and lambda to the three factors of the update, for every `state_update_mode`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gates(NamedTuple):
    """keep, erase and write, each (B, T, H, r), or (B, T, H, 1) where all rows of a state share one.

    keep is None where nothing is ever forgotten but by being overwritten (``no_lambda``): all ones.
    """

    keep: Tensor | None
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
        return Gates(None, beta, beta)
    raise ValueError(f"unknown state_update_mode {mode!r}")


def mask_gates(gates: Gates, written: Tensor | None) -> Gates:
    """Gates with those of tokens not written (B, T) set so that the state passes through unchanged."""
    if written is None:
        return gates
    here = written[:, :, None, None]
    keep = gates.keep if gates.keep is None else gates.keep.masked_fill(~here, 1.0)
    write = gates.write.masked_fill(~here, 0.0)
    erase = write if gates.erase is gates.write else gates.erase.masked_fill(~here, 0.0)
    return Gates(keep, erase, write)


def mask_reads(reads: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the reads of padding."""
    return reads if valid is None else reads.masked_fill(~valid[:, :, None, None], 0.0)
