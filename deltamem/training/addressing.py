"""Addressing: a question's query must find the key under which its answer was told, and no other.

What counts against a pair of keys, or of a query and a key, is the SQUARE of its cosine: reading a key that points the
other way brings its value back with the sign turned, and writing it erases as much as one that points the same way.
With the plain cosine half of every fact was erased by the next one told. Keys of different facts are spread as far as
r dimensions allow: of n of them the mean squared cosine can't be below (n - r) / (r (n - 1)), the Welch bound.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SCALE = 5.0
_TOGETHER = 30.0
"""Likewise for the mean over layers, whose cosines lie closer together."""


@dataclass(frozen=True)
class Places:
    """Hidden states of all adapted layers, (L, N, hidden), by what their tokens are.

    Attributes:
        told: tokens of values as they were told.
        told_class: (N,), what each is found by.
        asking: tokens that come before such a token in an answer.
        asking_class: (N,), likewise.
        other_written: other tokens that were written.
        other_read: other tokens that only read.
    """

    told: Tensor
    told_class: Tensor
    asking: Tensor
    asking_class: Tensor
    other_written: Tensor
    other_read: Tensor


@dataclass(frozen=True)
class Weights:
    """W_q, W_k, W_beta and b_beta of all adapted layers, stacked: (L, H r, hidden), ..., (L, g)."""

    query: Tensor
    key: Tensor
    gate: Tensor
    bias: Tensor
    heads: int

    def unit(self, weight: Tensor, hidden: Tensor) -> Tensor:
        """(L, N, H, r): keys or queries of hidden states."""
        out = torch.tanh(hidden @ weight.transpose(1, 2)).unflatten(-1, (self.heads, -1))
        return F.normalize(out, dim=-1)

    def gates(self, hidden: Tensor) -> Tensor:
        """(L, N, g): logits of beta."""
        return hidden @ self.gate.transpose(1, 2) + self.bias[:, None]


@dataclass(frozen=True)
class AddressingLoss:
    """Its parts, each a mean.

    Attributes:
        contrast: cross-entropy of a query finding its key among all told tokens, layer by layer.
        together: the same with the cosines of all layers averaged: all of them are read.
        signal: one minus the cosine of a query with its keys.
        overlap: squared cosine between keys of different classes.
        quiet: squared cosine between keys and the queries of tokens that ask for nothing.
        gates: binary cross-entropy of beta.
        found: per layer, how often the nearest key is the right one.
        overlaps: per layer, `overlap`.
    """

    contrast: Tensor
    together: Tensor
    signal: Tensor
    overlap: Tensor
    quiet: Tensor
    gates: Tensor
    found: Tensor
    overlaps: Tensor

    def total(self, spread: float = 2.0) -> Tensor:
        """The weighted sum."""
        told = self.contrast + self.together + 2 * self.signal
        return told + spread * self.overlap + 2 * self.quiet + self.gates


def addressing_loss(
    weights: Weights, places: Places, open_gate: float = 0.95, shut_gate: float = 0.002
) -> AddressingLoss:
    """How far keys, queries and gates are from doing their work, layer by layer.

    Args:
        weights: of the adapter.
        places: hidden states, taken as they are.
        open_gate: beta wanted on the tokens of a value.
        shut_gate: beta wanted elsewhere.
    """
    keys, queries = weights.unit(weights.key, places.told), weights.unit(weights.query, places.asking)
    idle = weights.unit(weights.query, places.other_read)
    match = torch.einsum("lqhr,lkhr->lqk", queries, keys) / weights.heads
    right = places.asking_class[:, None] == places.told_class[None]
    against = torch.where(right, match, match.abs()) * _SCALE
    known = right.any(1)
    wanted = against.masked_fill(~right, -torch.inf)[:, known].logsumexp(-1)
    contrast = (against[:, known].logsumexp(-1) - wanted).mean()
    joint = match.mean(0)[known] * _TOGETHER
    together = joint.logsumexp(-1) - joint.masked_fill(~right[known], -torch.inf).logsumexp(-1)
    crossing = torch.einsum("lahr,lbhr->lhab", keys, keys).square()
    crossing = crossing[:, :, places.told_class[:, None] != places.told_class[None]]
    quiet = torch.einsum("lqhr,lkhr->lhqk", idle, keys).square().mean()
    opened, shut = weights.gates(places.told), weights.gates(places.other_written)
    gates = F.binary_cross_entropy_with_logits(opened, torch.full_like(opened, open_gate))
    gates = gates + 4 * F.binary_cross_entropy_with_logits(shut, torch.full_like(shut, shut_gate))
    with torch.no_grad():
        best = against[:, known].argmax(-1)
        found = right[known].expand(len(best), -1, -1).gather(-1, best[..., None]).float().mean((1, 2))
        overlaps = crossing.flatten(1).mean(-1)
    signal = 1 - match[:, right].mean()
    return AddressingLoss(contrast, together.mean(), signal, crossing.mean(), quiet, gates, found, overlaps)


def classes(names: Sequence[Hashable], numbers: dict[Hashable, int]) -> Tensor:
    """Names as numbers, the same number for the same name."""
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)
