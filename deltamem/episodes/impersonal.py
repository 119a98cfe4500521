"""Questions that sound like those about oneself and are not: "What is a good name for a dog?", "How do I find a job?".

Memory is to leave them alone, above all when the name of one's own dog is in it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from deltamem.episodes.numbers import numbers
from deltamem.episodes.relation_data import read_data
from deltamem.episodes.words import Split


class Impersonal(NamedTuple):
    """A question.

    Attributes:
        text: of it.
        relation: id of what it sounds like being asked; "" where that is none of a family.
    """

    text: str
    relation: str


def impersonal(rng: random.Random, split: Split, each: int) -> list[Impersonal]:
    """Such questions, each once.

    Args:
        rng: decides which.
        split: of the ways to put them; those held out are never trained with.
        each: how many about every noun of the families.
    """
    singles = [Impersonal(text, "") for text in read_data("singles.json")["impersonal"][split]]
    asked = {question.text: question for question in (*singles, *_of_families(rng, split, each))}
    return list(asked.values())


def about_numbers(rng: random.Random, split: Split, each: int) -> list[str]:
    """The same about numbers, and what else has numbers in it: "What is a normal heart rate?", "What is 7 plus 15?".

    Args:
        rng: decides which.
        split: of the ways to put them, and of the numbers in them.
        each: how many about every noun, and of every sum.
    """
    data = read_data("numbers.json")
    asked = []
    for some in data["families"]:
        ways = data["ways"][some["way"]]["impersonal"][split]
        asked += [_with(way, noun) for noun in some["nouns"] for way in rng.sample(ways, min(each, len(ways)))]
    for way in data["sums"][split]:
        asked += [_with_numbers(rng, way, split) for _ in range(each)]
    return list(dict.fromkeys(asked))


def _with_numbers(rng: random.Random, way: str, split: Split) -> str:
    """A way with any number of the kind that stands in braces in each of its places."""
    return re.sub(r"\{(\w+)\}", lambda kind: rng.choice(numbers()[kind[1]][split]), way)


def _of_families(rng: random.Random, split: Split, each: int) -> Iterator[Impersonal]:
    for family in read_data("families.json"):
        ways = family["impersonal"][split]
        for noun in family["nouns"]:
            relation = family["possessed"].replace("{n}", noun).replace(" ", "_")
            for way in rng.sample(ways, min(each, len(ways))):
                yield Impersonal(_with(way, noun), relation)


def _with(way: str, noun: str) -> str:
    return way.replace("a {n}", f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}").replace("{n}", noun)
