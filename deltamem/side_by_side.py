"""The writes of several layers side by side, for calls in which no token reads: a prompt, or a text to remember.

A layer's write is a few dozen small operations. Where nothing waits for what a layer would read, those of all layers
can be one: layers are then to the recurrence what the sequences of a batch are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig
from deltamem.layer import told_of
from deltamem.recurrence import delta_write, mask_gates

MOST_TOKENS = 16384
"""Tokens, over layers and sequences, that are written at once: more take memory and gain nothing."""


def write_side_by_side(
    config: DeltaMemConfig,
    products: Sequence[Tensor],
    states: Sequence[Tensor],
    valid: Tensor | None,
    written: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Write what each layer was told.

    Args:
        config: of the adapter.
        products: of each layer, (B, T, n), from `DeltaLayer.told_products`.
        states: of each layer, (B, H, r, r).
        valid: (B, T) bool, false for padding; None for all true.
        written: (B, T) bool, false for tokens that leave the states as they are; None for all true.

    Returns:
        The states after it (L, B, H, r, r), and the write gates (L, B, T, H, r or 1).
    """
    layers, batch = len(products), len(products[0])
    told = told_of(config, torch.cat(list(products)))
    gates = told.gates if written is None else mask_gates(told.gates, written.repeat(layers, 1))
    there = None if valid is None else valid.repeat(layers, 1)
    after = delta_write(told.k, told.v, gates, torch.cat(list(states)), there)
    return after.unflatten(0, (layers, batch)), gates.write.unflatten(0, (layers, batch))
