"""Keys and queries trained on their own: which of hundreds of told tokens is each place about?

A step on places learns from the few dozen facts of a history what a query is to leave out. Here every place is held
against hundreds of told tokens, those that differ in a noun among them, in a tenth of the time. What is wanted is what
the memory makes of cosines: of every query with its own key, high on the mean over layers; with others none, on that
mean and in each layer, as everything that is read of them is noise, and none that all of them have in common, as that
adds up; of keys with each other none, as writing one takes what overlaps of the others with it. Places right after a
value are to find nothing: it would be said again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.grouped import grouped
from deltamem.episodes.sorts import sort_of
from deltamem.memory import DeltaMemory
from deltamem.training.fitting import stacked_weights
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend, noisy
from deltamem.training.places.names import one_each, pairs, telling
from deltamem.training.warm_start import delta_layers

_CLIP = 1.0
_COMPARED = 512
"""Names in a step, one told token and one place of each; half of them begin a value."""
_TOGETHER = 12
"""Names of a sort that are taken together, in three cases of ten."""
_SHARP, _BETWEEN = 20.0, 0.2
"""A mean cosine becomes a logit as `_SHARP` times what it is above `_BETWEEN`."""
_TOLD_APART, _OTHERS, _OTHERS_BY_LAYER, _OVERLAP, _OWN = 0.6, 120.0, 60.0, 15.0, 40.0
"""Weights: of telling apart, of the squares of others' mean cosines and of those by layer, of the squares of cosines
between keys, and of the squares of what the mean cosine with the own key lacks."""
_ENOUGH = 0.6
"""Mean cosine wanted with the own key. Asking for more on the whole left those that had little where they were."""
_IN_COMMON = 300.0
"""Weight of the squares of what a place's cosines with all others have in common, by layer."""
_AFTER, _AFTER_WEIGHT = 160, 1.5
"""Places right after values in a step, and what they weigh. Others outside of values are left alone: what is to be said
there hangs on what the reply is about, and queries that find nothing are soon all the same."""
_SAID_AGAIN = 150.0
"""Weight of the squares of the mean cosine there with a key of the same topic."""
_FOUND_FALSELY = 0.3
"""Weight of a place and somebody else's key beside one and its own."""
_ALTERED = 0.7
"""Most of what two of a name differ in that is put on one of them; half of that on places."""


@dataclass(frozen=True)
class Found:
    """How well keys are found, over names that begin a value, each with one told token and one place.

    Attributes:
        own: mean cosine of a query with its own key, over layers.
        others: mean of those with others.
        by_layer: root of their mean square, layer by layer.
        after: that of places right after a value with a key of what the reply is about.
        nearest: share of places whose own key is the nearest of all of the same sort; of those that have others.
    """

    own: float
    others: float
    by_layer: float
    after: float
    nearest: float


def fit_keys(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train W_k and W_q.

    Args:
        memory: whose adapter is changed.
        bank: what its layers see.
        steps: of Adam; 600 of 64 x 26 numbers take three minutes on two cores.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    names = _Names(bank)
    weights = stacked_weights(memory, fresh=True)
    trained = [weights.key, weights.query]
    rng, generator = random.Random(f"keys-{seed}"), torch.Generator().manual_seed(seed)
    spread = bank.told[:, :_COMPARED].float().std(dim=(1, 2))[:, None, None]

    def moved(mine: Tensor, theirs: Tensor, far: float) -> Tensor:
        """Hidden states (layers, n, hidden size) with noise, and some of what others of their names differ in."""
        found = noisy(mine, spread, generator)
        return found + far * (2 * torch.rand(mine.shape[1], 1, generator=generator) - 1) * (theirs - mine)

    def loss() -> Tensor:
        chosen = names.some(rng)
        told, told_too = (telling(memory.config, bank, one_each(rng, names.told, chosen)) for _ in range(2))
        asked, asked_too = (bank.places[:, one_each(rng, names.asked, chosen)].float() for _ in range(2))
        keys = weights.unit(weights.key, moved(told, told_too, _ALTERED))
        queries = weights.unit(weights.query, moved(asked, asked_too, _ALTERED / 2))
        near, places = names.after(rng, chosen)
        if not places:
            return _loss(queries, keys)
        after = weights.unit(weights.query, noisy(bank.places[:, places], spread, generator))
        return _loss(queries, keys) + _AFTER_WEIGHT * _nothing(after, keys, torch.tensor(near))

    descend(trained, loss, steps, "telling keys apart", report, clip=_CLIP)
    with torch.no_grad():
        for layer, key, query in zip(delta_layers(memory), weights.key, weights.query, strict=True):
            layer.memory_k_proj.copy_(key)
            layer.memory_q_proj.copy_(query)


def _loss(queries: Tensor, keys: Tensor) -> Tensor:
    """Of queries and their own keys, (L, N, H, r) each."""
    match = torch.einsum("lqhr,lkhr->lqk", queries, keys) / keys.shape[2]
    others = ~torch.eye(match.shape[1], dtype=torch.bool)
    mean = match.mean(0)
    logits, own = _SHARP * (mean - _BETWEEN), torch.arange(len(mean))
    apart = F.cross_entropy(logits, own) + 0.5 * F.cross_entropy(logits.T, own)
    apart = apart + F.softplus(-logits.diagonal()).mean()
    apart = apart + _FOUND_FALSELY * F.softplus(logits[others]).sum() / len(logits)
    overlap = torch.einsum("lahr,lbhr->lab", keys, keys).div(keys.shape[2]).square()[:, others].mean()
    return (
        _TOLD_APART * apart
        + _OTHERS * mean[others].square().mean()
        + _OTHERS_BY_LAYER * match[:, others].square().mean()
        + _OVERLAP * overlap
        + _common(queries, keys)
        + _OWN * (_ENOUGH - mean.diagonal()).square().mean()
    )


def _nothing(queries: Tensor, keys: Tensor, near: Tensor) -> Tensor:
    """Of queries (L, M, H, r) that are to find none of the keys (L, N, H, r), least of all those `near` (M,)."""
    match = torch.einsum("lqhr,lkhr->lqk", queries, keys) / keys.shape[2]
    mean = match.mean(0)
    others = _OTHERS / 2 * mean.square().mean() + _OTHERS_BY_LAYER / 2 * match.square().mean()
    own = mean[torch.arange(len(near)), near]
    return others + _common(queries, keys) + _SAID_AGAIN * own.square().mean()


def _common(queries: Tensor, keys: Tensor) -> Tensor:
    return _IN_COMMON * (torch.einsum("lqhr,lhr->lq", queries, keys.mean(1)) / keys.shape[2]).square().mean()


class _Names:
    """Told tokens and places by what they are found by, of what has both."""

    def __init__(self, bank: Bank) -> None:
        named = pairs(bank)
        self.told = grouped(zip(named.told_about.tolist(), named.told.tolist(), strict=True))
        self.asked = grouped(zip(named.asked_about.tolist(), named.asked.tolist(), strict=True))
        both = sorted(self.told.keys() & self.asked.keys())
        self.first = [n for n in both if named.names[n][1] is None]
        self.later = [n for n in both if named.names[n][1] is not None]
        self.sort_of = {n: sort_of(named.names[n][0].relation) for n in self.first}
        self._topics = {n: named.names[n][0] for n in both}
        self._after = grouped(
            (fact.topic, place)
            for fact in bank.facts
            if not fact.noted
            for place in bank.after_value(fact)
            if not bank.values[place]
        )
        self.sorts = grouped((sort, n) for n, sort in self.sort_of.items())

    def some(self, rng: random.Random) -> list[int]:
        """Names of a step, each once."""
        chosen: dict[int, None] = {}
        wanted = min(_COMPARED // 2, len(self.first))
        while len(chosen) < wanted:
            one = rng.choice(self.first)
            chosen[one] = None
            if rng.random() < 0.3:
                near = self.sorts[self.sort_of[one]]
                chosen |= dict.fromkeys(rng.sample(near, min(len(near), _TOGETHER)))
        return [*chosen, *rng.sample(self.later, min(len(self.later), max(0, _COMPARED - len(chosen))))]

    def after(self, rng: random.Random, chosen: list[int]) -> tuple[list[int], list[int]]:
        """Places right after values in replies about some of the chosen: which of them each is about, and where."""
        there = [i for i, n in enumerate(chosen) if self._topics[n] in self._after]
        near = rng.sample(there, min(len(there), _AFTER))
        return near, [rng.choice(self._after[self._topics[chosen[i]]]) for i in near]


@torch.no_grad()
def how_found(memory: DeltaMemory, bank: Bank, seed: int = 0) -> Found:
    """Measure keys and queries as they are."""
    names, rng = _Names(bank), random.Random(seed)
    told, asked = (one_each(rng, where, names.first) for where in (names.told, names.asked))
    weights = stacked_weights(memory)
    keys = weights.unit(weights.key, telling(memory.config, bank, told).to(weights.key))
    queries = weights.unit(weights.query, bank.places[:, asked].to(weights.query))
    match = torch.einsum("lqhr,lkhr->lqk", queries, keys) / keys.shape[2]
    said, places = names.after(rng, names.first)
    again = weights.unit(weights.query, bank.places[:, places].to(weights.query))
    after = torch.einsum("lqhr,lqhr->q", again, keys[:, said]) / (len(keys) * keys.shape[2])
    others, mean = ~torch.eye(match.shape[1], dtype=torch.bool, device=match.device), match.mean(0)
    sorts = [names.sort_of[n] for n in names.first]
    near = torch.tensor([[a == b for b in sorts] for a in sorts], device=match.device) & others
    nearest = mean.diagonal() > mean.masked_fill(~near, -2).max(-1).values
    return Found(
        float(mean.diagonal().mean()),
        float(mean[others].mean()),
        float(match[:, others].square().mean().sqrt()),
        float(after.mean()),
        float(nearest[near.any(-1)].float().mean()),
    )
