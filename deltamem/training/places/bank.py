"""The bank: told values, and places where something is to be said, as the frozen backbone sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

_HIDDEN = ("told", "before", "other", "places", "openings", "idle")
_ROWS = (
    "told_ids",
    "other_residuals",
    "residuals",
    "targets",
    "values",
    "opening_residuals",
    "opening_targets",
    "idle_residuals",
)
"""A bank's tensors, (layers, n, hidden size) and (n, ...)."""

Report = Callable[[str, float], None]


class Topic(NamedTuple):
    """What a fact is about: a relation, and whose it is ("" for the user's own)."""

    relation: str
    owner: str


@dataclass
class Fact:
    """Something told and how it is asked for.

    Attributes:
        topic: what it is about.
        told: numbers of the bank's `told` tokens, in the order they are written; none where nothing was told.
        early: the value was told before anything that says what it is ("Rufus is my dog."), so that nothing at its own
            tokens, which are what is written, hangs on the topic.
        noted: it is asked for in the reply to the statement, which stands before it.
        asked: numbers of the bank's places at which a reply about it is to go on; none where it was told alone.
    """

    topic: Topic
    told: list[int] = field(default_factory=list)
    early: bool = False
    noted: bool = False
    asked: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Bank:
    """What steps draw from; hidden states are (layers, n, hidden size), as they enter the adapted layers.

    Attributes:
        facts: told and asked about.
        unknown: asked about, and never told.
        told: tokens of values.
        before: the token written right before each of `told`, zeros where there is none; (layers, 0, hidden size)
            where keys are made of a token alone.
        told_ids: (n,), which tokens those are.
        other: tokens that were written and tell nothing, after which the frozen backbone is to be left alone as well.
        other_residuals: their residuals, as those of `places`.
        places: tokens after which a reply goes on.
        residuals: (n, hidden size) of `places`, in the last layer after its attention.
        targets: (n,) of `places`, the token that is to come.
        values: (n,) of `places`, true where that is part of what had to be remembered.
        openings: tokens after which a reply goes on that has not come to its value yet; in what words it is begun hangs
            on what it replies to alone, so these are of every question and every statement there is.
        opening_residuals: their residuals, as those of `places`.
        opening_targets: (n,) of `openings`, the token that is to come.
        idle: tokens of ordinary talk after which the frozen backbone is to be left alone.
        idle_residuals: their residuals.
        candidates: token ids among which a target is told apart.
        unsaid: the token that comes where a value is not known.
        stock: told and not asked about. What asks for a fact says nothing of its value, so they can be asked for at the
            places of others.
    """

    facts: Sequence[Fact]
    unknown: Sequence[Fact]
    told: Tensor
    before: Tensor
    told_ids: Tensor
    other: Tensor
    other_residuals: Tensor
    places: Tensor
    residuals: Tensor
    targets: Tensor
    values: Tensor
    openings: Tensor
    opening_residuals: Tensor
    opening_targets: Tensor
    idle: Tensor
    idle_residuals: Tensor
    candidates: Tensor
    unsaid: int
    stock: Sequence[Fact] = ()

    def after_value(self, fact: Fact) -> list[int]:
        """Places of replies about a fact that come right after a token of what had to be remembered."""
        return [p for p in fact.asked if p - 1 in fact.asked and self.values[p - 1]]


def joined(banks: Sequence[Bank]) -> Bank:
    """Several banks as one."""
    tensors = {
        name: torch.cat([getattr(bank, name) for bank in banks], dim=dim)
        for names, dim in ((_HIDDEN, 1), (_ROWS, 0))
        for name in names
    }
    facts: list[Fact] = []
    unknown: list[Fact] = []
    stock: list[Fact] = []
    told = asked = 0
    for bank in banks:
        for own, into in ((bank.facts, facts), (bank.unknown, unknown), (bank.stock, stock)):
            into += [replace(f, told=[t + told for t in f.told], asked=[p + asked for p in f.asked]) for f in own]
        told, asked = told + len(bank.told_ids), asked + len(bank.targets)
    candidates = torch.unique(torch.cat([bank.candidates for bank in banks]))
    return Bank(facts=facts, unknown=unknown, candidates=candidates, unsaid=banks[0].unsaid, stock=stock, **tensors)
