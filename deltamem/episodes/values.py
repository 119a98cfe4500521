"""What can be told of a relation: any word of the tokenizer, words of several tokens, likely ones, and numbers."""

from __future__ import annotations

import random
from collections.abc import Collection
from functools import cached_property
from typing import Any

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.numbers import numbers
from deltamem.episodes.relation_data import read_data, relatives
from deltamem.episodes.relations import Relation
from deltamem.episodes.words import Beginnings, Split, beginnings, made_up, split_words
from deltamem.errors import DataError

_KINDS = ("name", "word")


class Values:
    """The values there are, by split.

    Args:
        tokenizer: its words are values.

    Raises:
        DataError: the tokenizer has too few words that are single tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._single = {kind: split_words(tokenizer, kind) for kind in _KINDS}
        if any(not words for splits in self._single.values() for words in splits.values()):
            raise DataError("this tokenizer has too few words that are single tokens for the built-in generator")
        self._single |= numbers()
        self._likely: dict[Split, dict[str, list[str]]] = {"train": {}, "heldout": {}}
        self._of_sort: dict[str, list[str]] = {}
        self._longer: dict[str, list[str]] = {}
        for name, sort in read_data("values.json").items():
            # As with the names of people, the last ones are for held-out people; fewer, as there are few of them.
            last = len(sort["values"]) * 4 // 5
            self._of_sort[name] = sort["values"][:last]
            for of in sort["of"]:
                self._likely["train"][of], self._likely["heldout"][of] = sort["values"][:last], sort["values"][last:]
                self._longer.setdefault(of, []).extend(sort.get("longer", ()))
        for known in (*self._likely.values(), self._longer):
            known |= {r.id: known[r.way] for r in relatives() if r.way in known}

    def single(self, kind: str, split: Split) -> list[str]:
        """All of a kind (``name`` or ``word``) that are one token, or all numbers of a kind."""
        return self._single[kind][split]

    def likely(self, relation: str, split: Split) -> list[str]:
        """Such as one would expect of a relation, by its id; empty where none are known."""
        return self._likely[split].get(relation, [])

    def of_sort(self, sort: str) -> list[str]:
        """Those of a sort ("places"), or numbers of a kind, that training tells; empty where it is neither."""
        told = numbers().get(sort)
        return self._of_sort.get(sort, []) if told is None else told["train"]

    @cached_property
    def longer(self) -> dict[str, list[str]]:
        """Words of several tokens that one would expect of a relation, by its id; training never tells them."""
        single = {word for splits in self._single.values() for words in splits.values() for word in words}
        longer = {of: [word for word in words if word not in single] for of, words in self._longer.items()}
        return {of: words for of, words in longer.items() if words}

    @cached_property
    def _beginnings(self) -> dict[str, Beginnings]:
        return {kind: beginnings(self._tokenizer, kind) for kind in _KINDS}

    def told_of(
        self, rng: random.Random, relation: Relation, difficulty: Difficulty, split: Split, taken: Collection[str]
    ) -> str:
        """A value of a relation, such as one would expect where `difficulty` says so and some are known.

        Args:
            rng: decides everything.
            relation: what it is told of.
            difficulty: shares of the sorts of values.
            split: it is of.
            taken: those it is not to be.
        """
        value = self.any(rng, relation.kind, difficulty, split, taken)
        if difficulty.natural and rng.random() < difficulty.natural:
            value = _other(rng, self.likely(relation.id, split), taken) or value
        if difficulty.longer and rng.random() < difficulty.longer:
            value = _other(rng, self.longer.get(relation.id, []), taken) or value
        return value

    def any(self, rng: random.Random, kind: str, difficulty: Difficulty, split: Split, taken: Collection[str]) -> str:
        """A value of a kind, whatever it is told of."""
        pool = self._single[kind][split][: difficulty.pool]
        if kind not in _KINDS:
            return rng.choice([number for number in pool if number not in taken])
        value = rng.choice(pool)
        if rng.random() < difficulty.long_values:
            value = self._long(rng, kind, value, pool, split)
        while value in taken:  # a longer one is free sooner or later, however small the pool
            value = f"{value} {rng.choice(pool)}"
        return value

    def _long(self, rng: random.Random, kind: str, word: str, pool: list[str], split: Split) -> str:
        """Two words, or one of several tokens. Most names that people have are, so in training most of them are."""
        how, put_together = rng.random(), split == "train" and bool(self._beginnings[kind].later)
        if how < (0.3 if put_together else 0.5):
            return f"{word} {rng.choice(pool)}"
        return self._beginnings[kind].word(rng) if put_together and how > 0.45 else made_up(rng, kind)


def _other(rng: random.Random, words: list[str], taken: Collection[str]) -> str:
    """One of the words that is not taken; empty where there is none."""
    left = [word for word in words if word not in taken]
    return rng.choice(left) if left else ""
