"""What was told, and what is close to it and was not: a sister's name was told, and a brother's is asked for as well.

A query for the one finds the key of the other at half the strength, and its value is said, most of all one that the
backbone expects. Nothing else that is drawn asks for many of these, so what was told and what is close to it are asked
for side by side here (benchmarks/places.md).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

import torch

from deltamem.episodes.grouped import grouped
from deltamem.episodes.sorts import sort_of
from deltamem.training.places.bank import Bank, Fact, Topic
from deltamem.training.places.draw import Drawing, Drawn, Token
from deltamem.training.places.tail import Tail

TOLD_WEIGHT = 1.5
"""Of what was told, beside 1 for what was not: in a chat it is asked for more often."""
_FACTS = (1, 1, 2, 3, 4, 8)
"""How many are told in a history, each as often as it stands here."""
_EXPECTED, _LIKELIEST = 0.8, 1000
"""Share of facts with values that the backbone expects, where there are such: what is among so many candidates that it
thinks likeliest where the value is to come."""
_BESIDE = 0.4
"""Chance that one of those nearest to a fact is told beside it."""
_NEAREST = 3
_EACH = 2
"""Times a fact is asked for, and times one of those nearest to it that were not told."""
_SWAPPED = 0.5
"""Share of facts that are told with the value of another of the sort."""
_LOOKED_UP = 256


class Close:
    """Draws such histories.

    Args:
        drawing: of the bank.
        bank: what there is, of which no more than numbers is kept.
        near: of a relation, those nearest to it (`nearest`).
        tail: the rest of the backbone, which says what it expects, and is not kept; nothing is expected without one.
    """

    def __init__(
        self, drawing: Drawing, bank: Bank, near: Mapping[str, Sequence[str]], tail: Tail | None = None
    ) -> None:
        self._drawing, self._unsaid = drawing, bank.unsaid
        self._ids: list[int] = bank.told_ids.tolist()
        self._targets: list[int] = bank.targets.tolist()
        asked = _asked_first(drawing, bank)
        expected = expected_at([place for _, place in asked], bank, tail) if tail is not None else set()
        self._first = {fact.told[0]: place for fact, place in asked}
        some, likely = [fact for fact, _ in asked], [fact for fact, place in asked if place in expected]
        self._of = grouped((fact.topic.relation, fact) for fact in some)
        self._likely = grouped((fact.topic.relation, fact) for fact in likely)
        self._of_sort = grouped((sort_of(f.topic.relation), f) for f in likely if len(self._words(f)) == 1)
        self._near = {
            relation: [other for other in others[:_NEAREST] if other in self._of]
            for relation, others in near.items()
            if relation in self._of
        }
        with_likely = [relation for relation in self._near if relation in self._likely]
        self._relations = with_likely or list(self._near)

    def histories(self, rng: random.Random, count: int) -> Drawn:
        """So many, and the places where what was told in them and what is close to it are to come; none where no
        relation is near another.
        """
        told: list[list[Token]] = []
        asked: list[tuple[int, int, int]] = []
        for row in range(count if self._relations else 0):
            facts = self._facts(rng)
            topics = {fact.topic for fact in facts}
            told.append([])
            for fact in facts:
                swap = self._swap(rng, fact)
                told[-1] += [Token(t, t if swap is None else swap, self._drawing.about(fact, t)) for t in fact.told]
                said = self._targets[self._first[fact.told[0]]] if swap is None else self._ids[swap]
                places = rng.choices(self._drawing.first_places[fact.topic], k=_EACH)
                asked += [(row, place, said) for place in places]
                asked += [(row, place, self._unsaid) for place in self._not_told(rng, fact, topics)]
        return self._drawing.laid_out(rng, told, asked)

    def _facts(self, rng: random.Random) -> list[Fact]:
        count = min(rng.choice(_FACTS), len(self._relations))
        chosen: dict[str, Fact] = {}
        while len(chosen) < count:
            relation = rng.choice(self._relations)
            chosen.setdefault(relation, self._any(rng, relation))
            close = [other for other in self._near[relation] if other not in chosen]
            if close and len(chosen) < count and rng.random() < _BESIDE:
                beside = rng.choice(close)
                chosen[beside] = self._any(rng, beside)
        facts = list(chosen.values())
        rng.shuffle(facts)
        return facts

    def _any(self, rng: random.Random, relation: str) -> Fact:
        likely = self._likely.get(relation)
        return rng.choice(likely if likely and rng.random() < _EXPECTED else self._of[relation])

    def _swap(self, rng: random.Random, fact: Fact) -> int | None:
        """A told token that stands for another's value, where both are of one token."""
        others = self._of_sort.get(sort_of(fact.topic.relation))
        if not others or len(self._words(fact)) > 1 or rng.random() >= _SWAPPED:
            return None
        return rng.choice(others).told[0]

    def _words(self, fact: Fact) -> set[int]:
        return {self._ids[t] for t in fact.told}

    def _not_told(self, rng: random.Random, fact: Fact, topics: Collection[Topic]) -> list[int]:
        """Places that ask for what is nearest to a fact, of the same person."""
        wanted = [Topic(relation, fact.topic.owner) for relation in self._near[fact.topic.relation]]
        there = [t for t in wanted if t not in topics and t in self._drawing.first_places]
        return [rng.choice(self._drawing.first_places[rng.choice(there)]) for _ in range(_EACH)] if there else []


def _asked_first(drawing: Drawing, bank: Bank) -> list[tuple[Fact, int]]:
    """Facts that can be found by what they are about, and the place where the value of each begins."""
    some = (fact for fact in bank.facts if not (fact.early or fact.noted or fact.in_window))
    findable = ((fact, drawing.first_place(fact)) for fact in some)
    return [(fact, place) for fact, place in findable if place is not None]


@torch.no_grad()
def expected_at(places: Sequence[int], bank: Bank, tail: Tail) -> set[int]:
    """Those of `places` where what is to be said is among the likeliest to the frozen backbone."""
    found: set[int] = set()
    for some in torch.tensor(places, dtype=torch.long).split(_LOOKED_UP):
        logits = tail(bank.residuals[some].to(tail.device).float(), bank.candidates.to(tail.device)).cpu()
        own = torch.searchsorted(bank.candidates, bank.targets[some])
        likelier = (logits > logits.gather(1, own[:, None])).sum(1)
        found.update(some[likelier < _LIKELIEST].tolist())
    return found
