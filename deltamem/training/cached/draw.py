"""Histories put together from the bank, and what is asked about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.episodes.prefixes import Prefix
from deltamem.training.cached.bank import Bank, Unit

_TRIES = 60


@dataclass(frozen=True)
class Drawn:
    """A batch of histories with their questions.

    Attributes:
        hidden: (layers, B, T, hidden size), padded on the right.
        valid: (B, T).
        values: (B, T), true for tokens of a value that is asked about.
        talk: (B, T), true for small talk.
        about: (B, T), a number for what a value is about; the same for the same topics.
        asked: (row, prefix, answer, marks) for each question.
    """

    hidden: Tensor
    valid: Tensor
    values: Tensor
    talk: Tensor
    about: Tensor
    asked: list[tuple[int, Prefix, tuple[int, ...], tuple[int, ...]]]


def draw(rng: random.Random, bank: Bank, histories: int, facts: int, talk: int, questions: int) -> Drawn:
    """Put histories together.

    Args:
        rng: decides everything.
        bank: what there is.
        histories: how many.
        facts: about so many facts in each.
        talk: most turns of small talk among them.
        questions: most questions over all.
    """
    chosen = [_history(rng, bank, facts, talk) for _ in range(histories)]
    asked = [
        (row, q.prefix or rng.choice(bank.questions[q.topic]), q.answer, q.marks)
        for row, parts in enumerate(chosen)
        for unit, _ in parts
        for q in unit.asked
        if not (q.kind == "unknown" and any(q.topic in other.topics for other, _ in parts))
    ]
    if len(asked) > questions:
        asked = rng.sample(asked, questions)
    length = max(sum(unit.hidden.shape[1] for unit, _ in parts) for parts in chosen)
    first = bank.units[0].hidden
    hidden = torch.zeros(first.shape[0], histories, length, first.shape[2], dtype=first.dtype)
    flags = torch.zeros(3, histories, length, dtype=torch.bool)
    about = torch.zeros(histories, length, dtype=torch.long)
    numbers: dict[frozenset[str], int] = {}
    for row, parts in enumerate(chosen):
        at = 0
        for unit, is_talk in parts:
            here = slice(at, at + unit.hidden.shape[1])
            hidden[:, row, here] = unit.hidden
            flags[0, row, here] = True
            flags[1, row, here] = unit.values
            flags[2, row, here] = is_talk
            about[row, here] = numbers.setdefault(unit.topics, len(numbers))
            at = here.stop
    return Drawn(hidden, flags[0], flags[1], flags[2], about, asked)


def _history(rng: random.Random, bank: Bank, facts: int, talk: int) -> Sequence[tuple[Unit, bool]]:
    """Units of different topics with about so many facts, in the order they are told, and small talk between."""
    units: list[tuple[Unit, bool]] = []
    taken: set[str] = set()
    for _ in range(_TRIES):
        if len(taken) >= facts:
            break
        unit = rng.choice(bank.units)
        if not taken & unit.topics:
            taken |= unit.topics
            units.append((unit, False))
    for _ in range(rng.randint(0, talk) if bank.talk else 0):
        units.insert(rng.randint(0, len(units)), (rng.choice(bank.talk), True))
    return units
