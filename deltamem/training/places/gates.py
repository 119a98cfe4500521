"""Gates trained on their own: open on all tokens of a value, and elsewhere as they were.

A word that is one by itself ("Snow") and goes on in another value ("Snowball") looks like the end of one, so a gate
that has seen few such values is half shut there: what comes next is then not asked for, or was not written. One that
has seen no numbers is shut on all of their digits.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from deltamem.episodes.numbers import is_number
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend
from deltamem.training.places.gated import Gates, Wanted, as_it_was, far_off, numbered, there
from deltamem.training.places.stacked import Stacked
from deltamem.training.warm_start import delta_layers

_WRITE, _READ = ("beta_proj", "beta_bias"), ("read_gate_proj", "read_gate_bias")
_RATE = 3.0
_BEGUN, _GONE_ON, _ASKED_ON = 0.75, 0.85, 0.97
"""Least a write gate is to be open on the first token of a value, where it is open at all, and on later ones; and a
read gate where a later one is to be said."""
_OPEN = 0.75
"""A write gate counts as open from this share of its floor on: likely words lie just around that."""


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

        def loss(gates: Gates = gates, every: Sequence[Wanted] = every) -> Tensor:
            return far_off(gates, Stacked(layers), before, every, generator)

        descend(weights, loss, steps, "opening gates on values", report, rates=[_RATE] * len(weights))


def _written(memory: DeltaMemory, bank: Bank, joining: Collection[int]) -> list[Wanted]:
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
    return there(
        Wanted(bank.told, numbered(first), 256, 20.0, lambda w: torch.where(w > least_open, w.clamp_min(_BEGUN), w)),
        Wanted(bank.told, numbered(later), 256, 20.0, lambda w: w.clamp_min(_GONE_ON)),
        Wanted(bank.told, numbered(joins), 64, 8.0, as_it_was),
        Wanted(bank.other, torch.arange(bank.other.shape[1]), 512, 60.0, as_it_was),
    )


def _read(bank: Bank) -> list[Wanted]:
    """Places where a later token of a value, or any of a number, is to be said; a first one; or another; in ordinary
    talk; in openings.
    """
    value = bank.values.tolist()
    later = {p for f in bank.facts for p in bank.after_value(f) if value[p]}
    later |= {p for f in bank.facts if is_number(f.topic.relation) for p in f.asked if value[p]}
    first = {p for p, is_value in enumerate(value) if is_value} - later
    return there(
        Wanted(bank.places, numbered(later), 256, 20.0, lambda r: r.clamp_min(_ASKED_ON)),
        Wanted(bank.places, numbered(first), 192, 20.0, as_it_was),
        Wanted(bank.places, (~bank.values).nonzero()[:, 0], 128, 8.0, as_it_was),
        Wanted(bank.idle, torch.arange(bank.idle.shape[1]), 512, 40.0, as_it_was),
        Wanted(bank.openings, torch.arange(bank.openings.shape[1]), 256, 25.0, as_it_was),
    )
