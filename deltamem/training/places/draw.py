"""Histories put together from told facts, and the places that are asked about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.training.places.bank import Bank, Fact, Topic

_TRIES = 40
_FEW = 2
"""Facts among which something is asked for that was told before its topic: there it can be found all the same."""
_TOLD_TWICE = 0.2
"""Share of facts that were told with another value before."""
_SOMEBODY_ELSES = 0.35
"""Share of histories in which somebody else's is told beside one's own."""
_LATER = 0.5
"""Share that is kept of the places inside a value: what comes after its first token is easier to find."""
_REST = 3
"""One place outside of values for so many in them."""


@dataclass(frozen=True)
class Drawn:
    """A batch of histories, and places.

    Attributes:
        told: (B, T) numbers of the bank's told tokens, padded on the right.
        valid: (B, T).
        about: (B, T), a number for what a token is about.
        places: (P,) numbers of the bank's places.
        rows: (P,), the history each place is about.
        targets: (P,).
    """

    told: Tensor
    valid: Tensor
    about: Tensor
    places: Tensor
    rows: Tensor
    targets: Tensor


class Drawing:
    """Draws from a bank.

    Args:
        bank: what there is.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._numbers = {topic: n for n, topic in enumerate(sorted({f.topic for f in bank.facts}))}
        self._of: dict[str, list[Fact]] = {}
        self._same: dict[Topic, list[Fact]] = {}
        for fact in bank.facts:
            self._of.setdefault(fact.topic.relation, []).append(fact)
            self._same.setdefault(fact.topic, []).append(fact)
        self._value = bank.values.tolist()
        self._later = {p for fact in bank.facts for p in fact.asked if p and self._value[p] and self._value[p - 1]}

    def histories(self, rng: random.Random, facts: int, count: int, unknown: float, places: int) -> Drawn:
        """`count` histories of `facts` facts, in any order.

        Args:
            rng: decides everything.
            facts: how many in each.
            count: of histories.
            unknown: chance, per fact told, that something never told is asked about.
            places: about so many of those that are part of a value.
        """
        bank = self._bank
        told: list[list[tuple[int, int]]] = []
        asked: list[tuple[int, int, int]] = []
        for row in range(count):
            chosen = self._facts(rng, facts)
            topics = {fact.topic for fact in chosen}
            before = [rng.choice(self._same[f.topic]) for f in chosen if rng.random() < _TOLD_TWICE]
            told.append([(t, self._numbers[f.topic]) for f in (*before, *chosen) for t in f.told])
            # Among others, what is told before its topic can't be found by it; asking would teach keys to fit anything.
            for fact in [f for f in chosen if not f.early or facts <= _FEW] or chosen:
                asked += [(row, place, int(bank.targets[place])) for place in fact.asked]
            if rng.random() < unknown * facts:
                asked += self._never_told(rng, row, topics)
        values = [a for a in asked if self._value[a[1]] and (a[1] not in self._later or rng.random() < _LATER)]
        rest = [a for a in asked if not self._value[a[1]]]
        values = rng.sample(values, min(len(values), places))
        rest = rng.sample(rest, min(len(rest), places // _REST))
        return self._laid_out(told, values + rest)

    def _facts(self, rng: random.Random, count: int) -> list[Fact]:
        chosen: list[Fact] = []
        taken: set[Topic] = set()
        beside = rng.random() < _SOMEBODY_ELSES
        count = min(count, len(self._same))

        def take(fact: Fact) -> None:
            if fact.topic not in taken and len(chosen) < count:
                taken.add(fact.topic)
                chosen.append(fact)

        while len(chosen) < count:
            fact = rng.choice(self._bank.facts)
            take(fact)
            if beside and (others := [f for f in self._of[fact.topic.relation][:_TRIES] if f.topic != fact.topic]):
                take(rng.choice(others))
        rng.shuffle(chosen)
        return chosen

    def _never_told(self, rng: random.Random, row: int, topics: set[Topic]) -> list[tuple[int, int, int]]:
        """Any fact's question is one about something never told where it was not."""
        bank = self._bank
        for _ in range(_TRIES):
            fact = rng.choice(bank.unknown if bank.unknown and rng.random() < 0.5 else bank.facts)
            if fact.topic not in topics:
                first = [p for p in fact.asked if self._value[p]][:1]
                if fact.told:
                    return [(row, place, bank.unsaid) for place in first]
                return [(row, place, int(bank.targets[place])) for place in fact.asked]
        return []

    def _laid_out(self, told: Sequence[list[tuple[int, int]]], asked: Sequence[tuple[int, int, int]]) -> Drawn:
        length = max(1, *map(len, told))
        numbers = torch.zeros(3, len(told), length, dtype=torch.long)
        for row, tokens in enumerate(told):
            if tokens:
                numbers[0, row, : len(tokens)], numbers[1, row, : len(tokens)] = torch.tensor(tokens).T
                numbers[2, row, : len(tokens)] = 1
        rows, places, targets = (torch.tensor(column) for column in zip(*asked, strict=True))
        return Drawn(numbers[0], numbers[2] > 0, numbers[1], places, rows, targets)
