"""Keys and queries that know whose a thing is: a sister's town, a friend's, or one's own.

Keys of an adapter that learnt what one does oneself say what a thing is and hardly whose, so of two towns the one that
was told last is said for both. Here W_k and the queries of a later reader alone learn which of up to 28 people each
place is about, where all of them are told the same thing. Keys move in directions which all else that is told hardly
has (`sparing.py`), and are held to what they were there.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.relation_data import is_of_relatives
from deltamem.layer import DeltaLayer, told_of
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report, Topic, marked
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.draw import Drawing
from deltamem.training.places.sparing import Known, Sparing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail

_RATES = {"memory_q_proj": 3.0, "memory_k_proj": 4.0}
_SORTS, _TOGETHER = 3, 28
"""Sorts in a step, and most topics of each."""
_SHARP = 20.0
"""A mean cosine becomes a logit as so many times itself."""
_THE_OTHER_WAY = 0.5
"""Weight of finding the place of a key, beside finding the key of a place."""
_HELD, _HELD_AT_ONCE = 80.0, 256
"""Weight of keys of all else, that are to stay, and how many are looked at in a step."""
_LEAST, _TOO_LITTLE = 0.4, 80.0
"""Least that a query is to find of its own key, and the weight of the square of what it lacks: what is found at half
the strength is read so, and taken for what was never told."""


class Whose:
    """What is told of people close to one, and of oneself, to be told apart.

    Args:
        memory: whose layers see the bank.
        bank: what is told and asked.
        layers: a later reader's, alone (`later.alone`); what they have is changed.
        seed: of everything random.
    """

    def __init__(self, memory: DeltaMemory, bank: Bank, layers: Sequence[DeltaLayer], seed: int = 0) -> None:
        self._bank, self._drawing, self._tail = bank, Drawing(bank), Tail(memory)
        self._rng, self._generator = random.Random(f"whose-{seed}"), torch.Generator().manual_seed(seed)
        self._was = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in layers])
        self._sorts = [sort for sort in map(_of_people, self._drawing.sorts) if len(sort) > 1]
        close = [fact for fact in bank.facts if is_of_relatives(fact.topic.relation)]
        self._others = (~marked(bank.told_ids, close, "told")).nonzero()[:, 0]
        asked = marked(bank.targets, close, "asked").nonzero()[:, 0]
        device = self._was.device
        told = (bank.told, self._others), *([(bank.before, self._others)] if bank.before.shape[1] else [])
        known = {
            "memory_q_proj": Known.of_some(self._generator, device, (bank.places, asked)),
            "memory_k_proj": Known.of_some(self._generator, device, *told),
        }
        self._sparing = Sparing(layers, known)
        self._spread_told = _spread(bank.told)
        self._spread_asked = _spread(bank.places)

    def learn(self, steps: int, report: Report | None = None) -> None:
        """Change the layers; nothing where the bank tells the same of no two people."""
        if not self._sorts or not steps:
            return
        changed, rates = list(self._sparing.steps.values()), [_RATES[name] for name in self._sparing.steps]
        descend(changed, self._loss, steps, "learning whose a thing is", report, rates=rates)
        self._sparing.keep()

    def _loss(self) -> Tensor:
        """Of one step: cross-entropy of finding the own key, and the own place, and how far other keys have moved."""
        now, sorts = self._sparing.stacked(), self._rng.sample(self._sorts, min(_SORTS, len(self._sorts)))
        topics = [t for sort in sorts for t in self._rng.sample(sort, min(len(sort), _TOGETHER))]
        told, asked = self._drawing.one_each(self._rng, topics)
        found = self._found(now, told, asked)
        own = torch.arange(len(found), device=found.device)
        loss = F.cross_entropy(_SHARP * found, own) + _THE_OTHER_WAY * F.cross_entropy(_SHARP * found.T, own)
        loss = loss + _TOO_LITTLE * (_LEAST - found.diagonal()).clamp_min(0).square().mean()
        return loss + _HELD * self._moved(now)

    def _found(self, now: Stacked, told: Tensor, asked: Tensor) -> Tensor:
        """Cosines (n, n) of queries with keys, in the mean over layers and heads by how much of each is heard."""
        bank, config = self._bank, now.config
        written = told_of(config, now.told_products(*self._seen(told)))
        queries = F.normalize(now.queries(noisy(bank.places[:, asked], self._spread_asked, self._generator)), dim=-1)
        values = (written.gates.write * written.v).detach()
        heard = now.heard(values, self._tail.directions(bank.told_ids[told].to(now.device)))
        return torch.einsum("lihr,ljhr,lh->ij", queries, written.k, heard)

    def _moved(self, now: Stacked) -> Tensor:
        """One less the cosine of keys of all else with what they were, in the mean."""
        if not len(self._others):
            return torch.zeros((), device=now.device)
        some = self._others[some_of(len(self._others), _HELD_AT_ONCE, self._generator)]
        seen = self._seen(some)
        keys = told_of(now.config, now.told_products(*seen)).k
        with torch.no_grad():
            were = told_of(now.config, self._was.told_products(*seen)).k
        return (1 - (keys * were).sum(-1)).mean()

    def _seen(self, told: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """What `Stacked.told_products` takes of told tokens."""
        bank = self._bank
        hidden = noisy(bank.told[:, told], self._spread_told, self._generator)
        before = None
        if bank.before.shape[1]:
            # Where nothing was written before there are zeros, and they stay.
            there = bank.before[:, told].any(-1, keepdim=True)
            before = there * noisy(bank.before[:, told], self._spread_told, self._generator)
        return hidden, before, hidden


def _of_people(sort: Sequence[Topic]) -> list[Topic]:
    """What is told of people close to one and of oneself, of a sort that has some of the former."""
    if not any(is_of_relatives(topic.relation) for topic in sort):
        return []
    return [topic for topic in sort if is_of_relatives(topic.relation) or not topic.owner]


def _spread(hidden: Tensor) -> Tensor:
    return hidden[:, :512].float().std(dim=(1, 2))[:, None, None]
