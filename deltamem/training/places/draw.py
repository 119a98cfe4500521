"""Histories put together from told facts, and the places that are asked about them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.episodes.grouped import grouped
from deltamem.episodes.sorts import sort_of
from deltamem.training.places.bank import Bank, Fact, Topic

_TRIES = 40
_FEW = 2
"""Facts among which something is asked for that was told before its topic: there it can be found all the same."""
_TOLD_TWICE, _CORRECTED = 0.2, 0.8
"""Share of facts that were told with another value before, and of those that correct one."""
_SOMEBODY_ELSES = 0.35
"""Share of histories in which somebody else's is told beside one's own."""
_ALIKE = 0.5
"""Share of histories whose facts are of relations that differ in a noun alone, where there are such."""
_CLOSE = 0.5
"""Share of histories that tell of relations that are near each other, where there are such."""
_NEAR = 0.6
"""Share of what was never told that is asked for where what differs in a noun, or in whose it is, was told."""
_WITH = 3
"""Relations near it that are told with one, at most."""
_CLOSEST = 0.5
"""Share of that which is asked for where one of those nearest to it was told."""
_SORT = 6
"""Fewest topics of a sort that are held apart."""
_OWN = 0.7
"""Share of topics held apart that are one's own alone, and nobody else's."""
_STOCKED = 0.5
"""Share of facts that are of those told alone, where there are such."""
_CROSSED = 2
"""Times a fact is asked for at places where others about the same are: what asks for something says nothing of its
value, so every way to tell it goes with every way to ask for it."""
_SWAPPED = 0.5
"""Share of words of values that are told with another word's value, as what is around a word says nothing of it."""
_FROM_WORDS = 0.75
"""Share of those that are of the bank's words, where it has some, and not of other facts' values."""
_REST = 3
"""One place outside of values for so many in them."""


class Token(NamedTuple):
    """A token of a history: numbers of the told token its key and gates are from, of the one its value is from, and of
    what it is about.
    """

    told: int
    said: int
    about: int


@dataclass(frozen=True)
class Drawn:
    """A batch of histories, and places.

    Attributes:
        told: (B, T) numbers of the bank's told tokens, padded on the right.
        said: (B, T), the told tokens, or words (`Bank.said`), whose values are written with the keys and gates of
            those.
        valid: (B, T).
        about: (B, T), a number for what a token is about.
        other: (B, T), for a token that begins a value another one that begins a value of the same: what they differ in
            says nothing of what they are about. Elsewhere the token itself.
        places: (P,) numbers of the bank's places.
        rows: (P,), the history each place is about.
        targets: (P,).
    """

    told: Tensor
    said: Tensor
    valid: Tensor
    about: Tensor
    other: Tensor
    places: Tensor
    rows: Tensor
    targets: Tensor


class Drawing:
    """Draws from a bank.

    Args:
        bank: what there is.
        near: of a relation, those nearest to it (`nearest`).

    Attributes:
        first_places: of a topic, the places where values of it begin.
        sorts: topics that differ in a noun, or in whose they are, alone, those of each sort; where there are some.
    """

    def __init__(self, bank: Bank, near: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
        self._bank, self._near = bank, dict(near)
        self._value = bank.values.tolist()
        self._ids: list[int] = bank.told_ids.tolist()
        self._targets: list[int] = bank.targets.tolist()
        self._later = {p for fact in bank.facts for p in fact.asked if p and self._value[p] and self._value[p - 1]}
        # Where the statement itself stands before it, what is to be said hangs on that one statement.
        self._apart = [fact for fact in bank.facts if not fact.noted]
        self._stated = [fact for fact in bank.facts if fact.noted]
        # Where its value stands in its window, it is what is to be said there, and nothing else is.
        anew = [fact for fact in self._apart if not fact.in_window]
        firsts = ((fact.topic, self.first_place(fact)) for fact in anew)
        self.first_places = grouped((topic, first) for topic, first in firsts if first is not None)
        # They can be asked for where another about the same is, and nowhere else.
        self._stock = [fact for fact in bank.stock if fact.topic in self.first_places]
        every = [*bank.facts, *self._stock]
        self._numbers = {topic: n for n, topic in enumerate(sorted({f.topic for f in every}))}
        # What is asked for in the reply to a statement may be of two facts, of which each token tells one.
        told_of = [*self._apart, *self._stock]
        self._about_own = {token: self._numbers[fact.topic] for fact in told_of for token in fact.told}
        self._same = grouped((fact.topic, fact) for fact in every)
        self._of = grouped((fact.topic.relation, fact) for fact in every)
        self._alike = grouped((sort_of(fact.topic.relation), fact) for fact in every)
        self._alike_to_ask = grouped((sort_of(f.topic.relation), f) for f in (*anew, *bank.unknown))
        self._beginnings = grouped(
            (self._numbers[fact.topic], token)
            for fact in (*self._apart, *self._stock)
            if not fact.early
            for begins in [self._begins_with(fact)]
            for token in fact.told
            if self._ids[token] == begins
        )
        self._to_ask = grouped((f.topic.relation, f) for f in (*anew, *bank.unknown))
        self._anew = anew
        found = [t for t in self.first_places if self._numbers[t] in self._beginnings]
        self.sorts = [ts for ts in grouped((sort_of(t.relation), t) for t in found).values() if len(ts) >= _SORT]
        self._topics = found
        self._begins = {t for some in self._beginnings.values() for t in some}
        alike = [fact for fact in self._apart if self._said_alike(fact)]
        # Those to choose from: values of one token.
        self._words = [t for f in alike if len({self._ids[t] for t in f.told}) == 1 for t in f.told]
        words = {self._ids[t] for t in self._words}
        told = {fact.told[0]: {self._ids[t] for t in fact.told} for fact in alike}
        # Any piece of the vocabulary can go on a value, so with those all tokens of a value can be told with another's.
        swappable = told if bank.words is not None else {first: words & ids for first, ids in told.items()}
        self._swappable = {first: sorted(ids) for first, ids in swappable.items()}
        self._first_words: list[int] = []
        self._later_words: list[int] = []
        if bank.words is not None:
            for n, later in enumerate(bank.words.later.tolist(), len(self._ids)):
                (self._later_words if later else self._first_words).append(n)
            self._ids = self._ids + bank.words.ids.tolist()

    def _said_alike(self, fact: Fact) -> bool:
        """Its value is of the same tokens wherever it is said; at the head of a message they are others."""
        return {self._ids[t] for t in fact.told} == {self._targets[p] for p in fact.asked if self._value[p]}

    def histories(self, rng: random.Random, facts: int, count: int, unknown: float, places: int) -> Drawn:
        """`count` histories of `facts` facts, in any order.

        Args:
            rng: decides everything.
            facts: how many in each.
            count: of histories.
            unknown: chance, per fact told, that something never told is asked about.
            places: about so many of those that are part of a value.
        """
        told: list[list[Token]] = []
        asked: list[tuple[int, int, int]] = []
        for row in range(count):
            chosen = self._facts(rng, facts)
            topics = {fact.topic for fact in chosen}
            shares = [(fact, _CORRECTED if fact.corrects else _TOLD_TWICE) for fact in chosen]
            before = [rng.choice(self._same[f.topic]) for f, share in shares if rng.random() < share]
            swapped = [self._swaps(rng, fact) for fact in chosen]
            told.append([Token(t, t, self.about(f, t)) for f in before for t in f.told])
            told[-1] += self._also_seen(chosen, topics)
            for fact, swaps in zip(chosen, swapped, strict=True):
                told[-1] += [Token(t, swaps.get(self._ids[t], t), self.about(fact, t)) for t in fact.told]
            # Among others, what is told before its topic can't be found by it; asking would teach keys to fit anything.
            findable = [i for i, fact in enumerate(chosen) if not fact.early or facts <= _FEW] or range(len(chosen))
            for i in findable:
                asked += self._asked(rng, row, chosen[i], swapped[i])
            for _ in chosen:
                if rng.random() < unknown:
                    never, seen = self._never_told(rng, row, topics)
                    asked, told[-1] = asked + never, seen + told[-1]
        values = [a for a in asked if self._value[a[1]]]
        rest = [a for a in asked if not self._value[a[1]]]
        values = rng.sample(values, min(len(values), places))
        rest = rng.sample(rest, min(len(rest), places // _REST))
        return self.laid_out(rng, told, values + rest)

    def statements(self, rng: random.Random, facts: int, count: int) -> Drawn:
        """`count` histories of `facts` facts and a statement after them, and the places of the reply to that.

        It asks for nothing where the bank has no statements (`Fact.noted`).
        """
        told: list[list[Token]] = []
        asked: list[tuple[int, int, int]] = []
        for row in range(count if self._stated else 0):
            stated = rng.choice(self._stated)
            chosen = [*self._facts(rng, facts), stated] if facts else [stated]
            own = [Token(t, t, self.about(fact, t)) for fact in chosen for t in fact.told]
            told.append(self._also_seen([stated], {fact.topic for fact in chosen}) + own)
            asked += [(row, place, self._targets[place]) for place in stated.asked]
        return self.laid_out(rng, told, asked)

    def about(self, fact: Fact, token: int) -> int:
        """A number for what a told token of a fact is about (`Drawn.about`)."""
        return self._about_own.get(token, self._numbers[fact.topic])

    def apart(self, rng: random.Random, count: int) -> Tensor:
        """Numbers (2, n) of told tokens that begin a value and of places that ask for the same, each of another topic:
        about half of n, `count` at most, are of one sort.
        """
        if not self.sorts:
            return torch.zeros(2, 0, dtype=torch.long)
        sort = rng.choice(self.sorts)
        own = [topic for topic in sort if not topic.owner]
        among = own if len(own) >= _SORT and rng.random() < _OWN else sort
        some = rng.sample(among, min(count // 2, len(among)))
        others = rng.sample(self._topics, min(count // 2, len(self._topics)))
        return self.one_each(rng, list(dict.fromkeys([*some, *others])))

    def one_each(self, rng: random.Random, topics: Sequence[Topic]) -> Tensor:
        """Numbers (2, n) of a told token that begins a value, and of a place that asks for the same, of each topic; the
        topics are of `sorts`.
        """
        told = [rng.choice(self._beginnings[self._numbers[topic]]) for topic in topics]
        asked = [rng.choice(self.first_places[topic]) for topic in topics]
        return torch.tensor([told, asked], dtype=torch.long)

    def _facts(self, rng: random.Random, count: int) -> list[Fact]:
        close = self._near and count > 1 and rng.random() < _CLOSE
        chosen: list[Fact] = []
        taken: set[Topic] = set()
        beside = rng.random() < _SOMEBODY_ELSES
        count = min(count, len(self._same))

        def take(fact: Fact) -> None:
            if fact.topic not in taken and len(chosen) < count:
                taken.add(fact.topic)
                chosen.append(fact)

        while close and len(chosen) < count:
            take(fact := self._any(rng))
            near = self._near.get(fact.topic.relation, ())
            for relation in rng.sample(near, min(len(near), rng.randint(1, _WITH))):
                same = self._same.get(Topic(relation, fact.topic.owner)) or self._of[relation]
                take(rng.choice(same))
        start = self._any(rng)
        alike = self._alike[sort_of(start.topic.relation)] if rng.random() < _ALIKE else ()
        take(start)
        for _ in range(count - 1):
            # Others of its sort, for half of them: a sort of one has no others.
            if alike and rng.random() < 0.5:
                take(rng.choice(alike))
        while len(chosen) < count:
            fact = self._any(rng)
            take(fact)
            if beside and (other := self._somebody_elses(rng, fact)) is not None:
                take(other)
        rng.shuffle(chosen)
        return chosen

    def _somebody_elses(self, rng: random.Random, fact: Fact) -> Fact | None:
        """The same of another person."""
        others = self._of[fact.topic.relation]
        drawn = rng.sample(others, min(_TRIES, len(others)))
        return next((f for f in drawn if f.topic != fact.topic), None)

    def _any(self, rng: random.Random) -> Fact:
        return rng.choice(self._stock if self._stock and rng.random() < _STOCKED else self._bank.facts)

    def _swaps(self, rng: random.Random, fact: Fact) -> dict[int, int]:
        """Ids of tokens of its value that are told with another's, and the number of that."""
        words = () if fact.noted or fact.in_window else self._swappable.get(fact.told[0], ())
        begins = self._begins_with(fact)
        kinds = {word: self._others(rng, word == begins) for word in words if rng.random() < _SWAPPED}
        return {word: rng.choice(others) for word, others in kinds.items() if others}

    def _others(self, rng: random.Random, begins: bool) -> Sequence[int]:
        """Numbers of told tokens that begin, or go on, a value."""
        if not begins and self._later_words:
            return self._later_words
        of_words = bool(self._first_words) and (not self._words or rng.random() < _FROM_WORDS)
        return self._first_words if of_words else self._words

    def _asked(self, rng: random.Random, row: int, fact: Fact, swaps: Mapping[int, int]) -> list[tuple[int, int, int]]:
        """Places, of its own and of others, at which a fact is asked for, with what is to be said there."""

        def target(place: int) -> int:
            own = self._targets[place]
            return self._ids[swaps[own]] if self._value[place] and own in swaps else own

        asked = [(row, p, target(p)) for p in fact.asked]
        if fact.noted or fact.in_window or (begins := self._begins_with(fact)) is None:
            return asked
        said = self._ids[swaps[begins]] if begins in swaps else begins
        others = rng.choices(self.first_places[fact.topic], k=_CROSSED)
        return asked + [(row, p, said) for p in others]

    def _begins_with(self, fact: Fact) -> int | None:
        """Id of its value's first token in a reply."""
        if not fact.asked:
            return self._ids[fact.told[0]]
        first = self.first_place(fact)
        return None if first is None else self._targets[first]

    def first_place(self, fact: Fact) -> int | None:
        """The place where its value begins, if it is asked for."""
        return next((p for p in fact.asked if self._value[p] and p not in self._later), None)

    def _also_seen(self, facts: Sequence[Fact], topics: Collection[Topic]) -> list[Token]:
        """Other things that were told in the windows these are asked in, but for what is of one of the topics."""
        taken = {self._numbers[topic] for topic in topics if topic in self._numbers}
        tokens = dict.fromkeys(t for fact in facts for t in fact.seen)
        seen = ((t, self._about_own.get(t)) for t in tokens)
        return [Token(t, t, about) for t, about in seen if about is not None and about not in taken]

    def _never_told(
        self, rng: random.Random, row: int, topics: set[Topic]
    ) -> tuple[list[tuple[int, int, int]], list[Token]]:
        """Any fact's question is one about something never told where it was not; and what else was told in its
        window.
        """
        bank = self._bank
        near = None
        if rng.random() < _NEAR:
            told = rng.choice(sorted(topics)).relation
            nearest = self._near.get(told) if rng.random() < _CLOSEST else None
            near = self._to_ask.get(rng.choice(nearest)) if nearest else self._alike_to_ask.get(sort_of(told))
        for _ in range(_TRIES):
            fact = rng.choice(near or (bank.unknown if bank.unknown and rng.random() < 0.5 else self._anew))
            if fact.topic not in topics:
                seen = self._also_seen([fact], topics)
                if not fact.told:
                    return [(row, place, self._targets[place]) for place in fact.asked], seen
                first = self.first_place(fact)
                return ([] if first is None else [(row, first, bank.unsaid)]), seen
        return [], []

    def _other(self, rng: random.Random, token: Token) -> int:
        some = self._beginnings.get(token.about)
        return rng.choice(some) if some and token.told in self._begins else token.told

    def laid_out(self, rng: random.Random, told: Sequence[list[Token]], asked: Sequence[tuple[int, int, int]]) -> Drawn:
        """A batch of histories of `told` tokens, and of what is `asked`: the history, the place and the target."""
        length = max([1, *map(len, told)])
        numbers = torch.zeros(5, len(told), length, dtype=torch.long)
        for row, tokens in enumerate(told):
            if tokens:
                numbers[:3, row, : len(tokens)] = torch.tensor(tokens).T
                numbers[3, row, : len(tokens)] = 1
                numbers[4, row, : len(tokens)] = torch.tensor([self._other(rng, t) for t in tokens])
        rows, places, targets = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).T
        return Drawn(numbers[0], numbers[1], numbers[3] > 0, numbers[2], numbers[4], places, rows, targets)
