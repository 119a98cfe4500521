"""Gates trained on their own: open on all tokens of a value, and elsewhere as they were.

A word that is one by itself ("Snow") and goes on in another value ("Snowball") looks like the end of one, so a gate
that has seen few such values is half shut there: what comes next is then not asked for, or was not written. One that
has seen no numbers is shut on all of their digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.numbers import is_number
from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend, noisy
from deltamem.training.places.stacked import Stacked
from deltamem.training.warm_start import delta_layers

_WRITE, _READ = ("beta_proj", "beta_bias"), ("read_gate_proj", "read_gate_bias")
_RATE = 3.0
_BEGUN, _GONE_ON, _ASKED_ON = 0.75, 0.85, 0.97
"""Least a write gate is to be open on the first token of a value, where it is open at all, and on later ones; and a
read gate where a later one is to be said."""
_OPEN = 0.75
"""A write gate counts as open from this share of its floor on: likely words lie just around that."""
_SPREAD = 256


class _Some(NamedTuple):
    """What is wanted of gates at some of a bank's hidden states (layers, n, hidden size).

    Attributes:
        hidden: all of a sort.
        numbers: which of them these are.
        at_once: how many of these a step looks at.
        weight: of these.
        wanted: how far gates are to be open, from how far they were.
    """

    hidden: Tensor
    numbers: Tensor
    at_once: int
    weight: float
    wanted: Callable[[Tensor], Tensor]

    def draw(self, generator: torch.Generator) -> Tensor:
        """(layers, at_once, hidden size), any of these."""
        return self.hidden[:, self.numbers[torch.randint(len(self.numbers), (self.at_once,), generator=generator)]]


def _as_it_was(gates: Tensor) -> Tensor:
    return gates


def fit_gates(
    memory: DeltaMemory,
    bank: Bank,
    joining: Collection[int],
    steps: int,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """Train write gates, and then read gates where there are such.

    Args:
        memory: its adapter's gates are trained already; all else is left as it is.
        bank: what its layers see.
        joining: ids of tokens that join two things that were told ("and"): whether one belongs to a value is what gates
            have learnt, and stays.
        steps: of Adam, for each of both; 800 of rank 64 in 26 layers take a minute of two cores.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    layers = delta_layers(memory)
    before = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in layers])
    generator = torch.Generator().manual_seed(seed)
    kinds = [(_WRITE, Stacked.write_gates, _written(memory, bank, joining))]
    if memory.config.read_gate:
        kinds.append((_READ, Stacked.read_gates, _read(bank)))
    for names, gates, every in kinds:
        weights = [getattr(layer, name) for layer in layers for name in names]
        spread = every[0].hidden[:, :_SPREAD].float().std(dim=(1, 2))[:, None, None].to(before.device)
        loss = partial(_loss, layers, before, gates, every, spread, generator)
        descend(weights, loss, steps, "opening gates on values", report, rates=[_RATE] * len(weights))


def _loss(
    layers: Sequence[DeltaLayer],
    before: Stacked,
    gates: Callable[[Stacked, Tensor], Tensor],
    every: Sequence[_Some],
    spread: Tensor,
    generator: torch.Generator,
) -> Tensor:
    now, loss = Stacked(layers), torch.zeros((), device=before.device)
    for some in every:
        hidden = some.draw(generator).to(before.device).float()
        wanted = some.wanted(gates(before, hidden))
        found = gates(now, noisy(hidden, spread, generator))
        loss = loss + some.weight * F.binary_cross_entropy(found.clamp(1e-6, 1 - 1e-6), wanted)
    return loss


def _written(memory: DeltaMemory, bank: Bank, joining: Collection[int]) -> list[_Some]:
    """Tokens that were written: first ones of values, later ones and all of numbers, those that join two, and those
    that tell nothing.
    """
    ids = bank.told_ids.tolist()
    joins = {t for t, token in enumerate(ids) if token in joining}
    later = {t for f in bank.facts for b, t in zip(f.told, f.told[1:], strict=False) if t == b + 1}
    later = {t for t in later if t not in joins and t - 1 not in joins}
    digits = {t for fact in bank.facts if is_number(fact.topic.relation) for t in fact.told}
    later = (later | digits) - joins
    first = set(range(len(ids))) - later - joins
    least_open = _OPEN * memory.config.write_gate_floor
    return _there(
        _Some(bank.told, _numbers(first), 256, 20.0, lambda w: torch.where(w > least_open, w.clamp_min(_BEGUN), w)),
        _Some(bank.told, _numbers(later), 256, 20.0, lambda w: w.clamp_min(_GONE_ON)),
        _Some(bank.told, _numbers(joins), 64, 8.0, _as_it_was),
        _Some(bank.other, torch.arange(bank.other.shape[1]), 512, 60.0, _as_it_was),
    )


def _read(bank: Bank) -> list[_Some]:
    """Places where a later token of a value, or any of a number, is to be said; a first one; or another; in ordinary
    talk; in openings.
    """
    value = bank.values.tolist()
    later = {p for f in bank.facts for p in bank.after_value(f) if value[p]}
    later |= {p for f in bank.facts if is_number(f.topic.relation) for p in f.asked if value[p]}
    first = {p for p, is_value in enumerate(value) if is_value} - later
    return _there(
        _Some(bank.places, _numbers(later), 256, 20.0, lambda r: r.clamp_min(_ASKED_ON)),
        _Some(bank.places, _numbers(first), 192, 20.0, _as_it_was),
        _Some(bank.places, (~bank.values).nonzero()[:, 0], 128, 8.0, _as_it_was),
        _Some(bank.idle, torch.arange(bank.idle.shape[1]), 512, 40.0, _as_it_was),
        _Some(bank.openings, torch.arange(bank.openings.shape[1]), 256, 25.0, _as_it_was),
    )


def _numbers(some: Collection[int]) -> Tensor:
    return torch.tensor(sorted(some), dtype=torch.long)


def _there(*kinds: _Some) -> list[_Some]:
    return [some for some in kinds if len(some.numbers)]
