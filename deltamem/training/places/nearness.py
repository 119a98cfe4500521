"""Which relations are near each other: those whose replies look most alike to the frozen backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.grouped import grouped
from deltamem.episodes.sorts import sort_of
from deltamem.training.places.bank import Bank

_NEAREST = 6
_LOOKED_AT = 200
"""Places of a relation that are looked at, at most."""


def nearest(bank: Bank) -> dict[str, list[str]]:
    """Of each relation that differs in a noun alone from others, the nearest of those, the nearest first.

    "My sister" and "my brother" are told together, and hidden states of the one are nearly those of the other: an
    adapter that isn't shown both at once takes them for the same. Whose they are makes no difference.
    """
    places = bank.values.tolist()
    firsts = (
        (fact.topic.relation, next((place for place in fact.asked if places[place]), None))
        for fact in bank.facts
        if not fact.early and not fact.noted
    )
    asked = grouped((relation, place) for relation, place in firsts if place is not None)
    found: dict[str, list[str]] = {}
    for sort in grouped((sort_of(relation), relation) for relation in asked).values():
        if len(sort) < 2:
            continue
        looks = torch.stack([_mean_of(bank.places[:, asked[relation][:_LOOKED_AT]]) for relation in sort], dim=1)
        # What all of a sort have in common says nothing of which of them it is.
        looks = F.normalize(looks - looks.mean(1, keepdim=True), dim=-1)
        alike = (looks @ looks.mT).mean(0)
        alike.fill_diagonal_(-torch.inf)
        most = min(_NEAREST, len(sort) - 1)
        for relation, others in zip(sort, alike.topk(most).indices.tolist(), strict=True):
            found[relation] = [sort[n] for n in others]
    return found


def _mean_of(hidden: Tensor) -> Tensor:
    """(layers, hidden size) of hidden states (layers, n, hidden size)."""
    return hidden.float().mean(1)
