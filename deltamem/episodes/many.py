"""Many episodes, made in several processes where that is asked for; the same ones with any number of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Split
from deltamem.processes import beside

_TOGETHER = 100
"""Episodes that a process makes at a time."""

Chosen = Callable[[random.Random], Difficulty]


def make_episodes(
    people: SyntheticPeople,
    count: int,
    seed: str,
    split: Split,
    difficulty: Chosen,
    facts: int | None = None,
    workers: int = 0,
    report: Callable[[float], None] | None = None,
) -> list[Episode]:
    """So many episodes.

    Args:
        people: makes them.
        count: how many.
        seed: decides everything.
        split: of the episodes.
        difficulty: chooses that of each; a function of a module, with several processes.
        facts: how many in each; None for as many as the difficulty says.
        workers: processes that make them; 0 for this one alone.
        report: called with the share done.
    """
    lots = [(f"{seed}-{start}", min(_TOGETHER, count - start)) for start in range(0, count, _TOGETHER)]
    make = partial(_make, people, split, difficulty, facts)
    if not workers or len(lots) < 2:
        return _gathered(map(make, lots), count, report)
    with beside().Pool(min(workers, len(lots)), _begin, (make,)) as pool:
        return _gathered(pool.imap(_make_lot, lots), count, report)


def _gathered(made: Iterator[list[Episode]], count: int, report: Callable[[float], None] | None) -> list[Episode]:
    found: list[Episode] = []
    for lot in made:
        found += lot
        if report is not None:
            report(len(found) / count)
    return found


def _make(
    people: SyntheticPeople, split: Split, difficulty: Chosen, facts: int | None, lot: tuple[str, int]
) -> list[Episode]:
    rng = random.Random(lot[0])
    return [people.episode(rng, difficulty(rng), split, facts=facts) for _ in range(lot[1])]


_made_by: Callable[[tuple[str, int]], list[Episode]]
"""How a process makes a lot: people are sent to it once, not with every lot."""


def _begin(make: Callable[[tuple[str, int]], list[Episode]]) -> None:
    global _made_by
    _made_by = make


def _make_lot(lot: tuple[str, int]) -> list[Episode]:
    return _made_by(lot)
