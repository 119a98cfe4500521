"""Numbers that people tell of themselves: ages, years, codes, dates and times of day, in digits."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from deltamem.episodes.relation_data import family, read_data, relation_of, relatives
from deltamem.episodes.relations import Relation
from deltamem.episodes.words import Split

_HELD_OUT = 26
"""Of the 256 values of a byte: a tenth."""


def number_relations() -> list[Relation]:
    """Relations whose values are numbers; the kind of each is one of `numbers`."""
    data = read_data("numbers.json")
    made: list[Relation] = []
    for some in data["families"]:
        # A flight has a number and a day.
        made += [replace(r, id=f"{r.id}_{some['way']}") for r in family({**data["ways"][some["way"]], **some})]
    return made + [relation_of(one) for one in data["relations"]]


def is_number(relation: str) -> bool:
    """Whether the values of a relation, by its id, are numbers."""
    return relation in _ids()


@lru_cache(maxsize=1)
def _ids() -> frozenset[str]:
    ages = (relation for relation in relatives() if relation.way == "own_age")
    return frozenset(relation.id for relation in (*number_relations(), *ages))


@lru_cache(maxsize=1)
def numbers() -> dict[str, dict[Split, list[str]]]:
    """All numbers by kind and split, a tenth of them held out."""
    data = read_data("numbers.json")
    every = {kind: [str(n) for n in range(first, last + 1)] for kind, (first, last) in data["sorts"].items()}
    every["date"] = [f"{month} {day}" for month in data["months"] for day in range(1, 29)]
    every["time"] = [f"{hour}:{minute:02}" for hour in range(1, 24) for minute in range(0, 60, 5)]
    found: dict[str, dict[Split, list[str]]] = {}
    for kind, values in every.items():
        # By hash, so that a number stays on its side whatever it is told of.
        order = sorted(values, key=_hash)
        found[kind] = {"heldout": [v for v in order if _hash(v)[0] < _HELD_OUT]}
        found[kind]["train"] = [v for v in order if _hash(v)[0] >= _HELD_OUT]
    return found


def _hash(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()
