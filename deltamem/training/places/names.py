"""What told tokens are found by, and the places that are to find them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig
from deltamem.training.places.bank import Bank, Topic

Name = tuple[Topic, int | None]
"""What a token of a value is found by: what the fact is about, and the token before it where it is not the first."""


@dataclass(frozen=True)
class Named:
    """Told tokens and places of value tokens, each with the number of its name.

    Attributes:
        told: (n,) numbers of told tokens.
        told_about: (n,).
        asked: (m,) numbers of places.
        asked_about: (m,).
        names: by their number.
    """

    told: Tensor
    told_about: Tensor
    asked: Tensor
    asked_about: Tensor
    names: Sequence[Name]


def pairs(bank: Bank) -> Named:
    """What is to be found, and from where.

    What was told before its topic is left out, as nothing at its tokens hangs on that; and what is asked for in the
    reply to the statement, as it stands before the place.
    """
    numbers: dict[Name, int] = {}
    values, targets, ids = bank.values.tolist(), bank.targets.tolist(), bank.told_ids.tolist()
    told: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []

    def number(topic: Topic, before: int | None) -> int:
        return numbers.setdefault((topic, before), len(numbers))

    for fact in bank.facts:
        if fact.early or fact.noted:
            continue
        places = [p for p in fact.asked if values[p]]
        follows = {targets[p]: targets[p - 1] for p in bank.after_value(fact) if values[p]}
        asked += [(p, number(fact.topic, follows.get(targets[p]))) for p in places]
        told += [(t, number(fact.topic, follows.get(ids[t]))) for t in fact.told]
    for fact in bank.stock:
        # What comes before its other tokens is not known to be asked for.
        told += [(t, number(fact.topic, None)) for t in fact.told if ids[t] == ids[fact.told[0]]]
    return Named(*_columns(told), *_columns(asked), list(numbers))


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True)
    return torch.tensor(first), torch.tensor(second)


def one_each(rng: random.Random, where: Mapping[int, Sequence[int]], names: Sequence[int]) -> Tensor:
    """One of the tokens or places of every name."""
    return torch.tensor([rng.choice(where[n]) for n in names])


def telling(config: DeltaMemConfig, bank: Bank, told: Tensor, layer: int | slice = slice(None)) -> Tensor:
    """What keys of told tokens (n,) are made of, in a layer (n, hidden size) or in all (layers, n, hidden size).

    Where `own_share` goes by write gates the own token counts in full: how far they will stand open is not known yet.
    """
    own = bank.told[layer][..., told, :].float()
    if not bank.before.shape[1]:  # keys are made of a token alone
        return own
    return (config.own_share if config.fading else 1.0) * own + bank.before[layer][..., told, :].float()
