"""A start for keys, queries, values and corrections, in closed form from the bank.

* **W_k, W_q**: the directions in which the hidden state of a told value and that of the place where it is asked for
  agree most on what the fact is about (canonical correlation analysis over topics), turned at random so that every
  head gets as much of them as every other. Every second layer takes those after the first: what nouns that are near
  each other differ in is not among the first, and those are much the same in all layers.
* **W_v, D_o**: a code of the token, as in `training/warm_start.py`; what is added to the last residual gives it back.
  Beside a residual ten times as long that is hardly heard, and beside what else was told it is not told apart. So the
  two then learn, alone, to say a token among others that are read along with it, and of those there are more as soon
  as it is said. No history has to be written for that: how well queries find keys is measured once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.config import DeltaMemConfig
from deltamem.episodes.grouped import grouped
from deltamem.memory import DeltaMemory
from deltamem.training.fitting import stacked_weights
from deltamem.training.places.among import some_among
from deltamem.training.places.bank import Bank, Report, Topic
from deltamem.training.places.descent import descend
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers, fit_values

_DEALT = 2
"""Layers among which directions are dealt, the first ones to the first, those after them to the next, where there are
so many."""
_SCALE = 0.3
"""Length of keys before the hyperbolic tangent: small, so that it bends them little at first."""
_RIDGE = 0.05
"""Added to variances, relative to their mean."""
_ANEW = 0.5
"""Values of an adapter whose keys begin anew, of what they were: v17's queries found its keys with a cosine of 0.2, in
the mean over layers, and with keys that were fitted it is 0.4."""
_OPEN = 3.0
"""Logit of the write gates at first: what is no value is yet to shut them."""
_SAYING_STEPS, _SAYING_RATE, _SAID, _AMONG = 1200, 4.0, 256, 8000
"""Steps of learning W_v and D_o on their own, their rate beside other fits', tokens a step, and those told apart."""
_OPENED = 0.9
"""What read and write gates leave of a value."""
_ALONG, _MORE, _MOST_ALONG, _SAID_WELL, _LATELY = 1.0, 0.05, 32.0, 0.8, 20
"""Tokens read along with one at first, how many more after a step, and at most. There are more when so large a share of
the tokens of so many steps was said."""
_COMPARED = 512
"""Names whose keys and queries are compared to know how well they find each other."""


class Cosines(NamedTuple):
    """What queries find of keys.

    Attributes:
        own: mean, over heads of all layers, of the cosine with the own key; its mean over names.
        spread: its standard deviation.
        own_by_head: root mean square of what a head's own cosine differs from that mean by.
        others: root mean square of the mean, over heads of all layers, of the cosine with another name's key.
        others_by_head: root mean square of what a head's differs from that by.
    """

    own: float
    spread: float
    own_by_head: float
    others: float
    others_by_head: float


def start_from(memory: DeltaMemory, bank: Bank, seed: int = 0, report: Report | None = None) -> None:
    """Set W_k, W_q, W_v, D_o and the write gates' bias.

    Args:
        memory: whose adapter is changed.
        bank: what its layers see.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    fit_values(memory, bank.told.float(), bank.told_ids)
    named = pairs(bank)
    _fit_keys(memory, bank, named, seed, report)
    with torch.no_grad():
        for layer in delta_layers(memory):
            layer.beta_bias.fill_(_OPEN)
            if memory.config.base_queries:
                layer.memory_base_proj.copy_(layer.memory_q_proj)
    _learn_to_say(memory, bank, found(memory, bank, named, seed), seed, report)


def begin_keys_anew(memory: DeltaMemory, bank: Bank, seed: int = 0, report: Report | None = None) -> None:
    """Set W_k and W_q of a trained adapter as a start does, and leave the rest: with queries of its own the base state
    says what it said. Such keys are found so well that values are written at half of what they were.
    """
    _fit_keys(memory, bank, pairs(bank), seed, report)
    with torch.no_grad():
        for layer in delta_layers(memory):
            layer.memory_v_proj.mul_(_ANEW)


def _fit_keys(memory: DeltaMemory, bank: Bank, named: Named, seed: int, report: Report | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = delta_layers(memory)
    count = len(layers[0].memory_k_proj)
    dealt = min(_DEALT, max(1, layers[0].hidden_size // (2 * count)))
    for i, layer in enumerate(layers):
        if report is not None:
            report("fitting keys", i / len(layers))
        keys, queries = agreeing(
            telling(memory.config, bank, named.told, i),
            named.told_about,
            bank.places[i][named.asked].float(),
            named.asked_about,
            count,
            first=i % dealt * count,
        )
        turn, _ = torch.linalg.qr(torch.randn(len(keys), len(keys), generator=generator))
        with torch.no_grad():
            layer.memory_k_proj.copy_(_SCALE * turn @ keys)
            layer.memory_q_proj.copy_(_SCALE * turn @ queries)


def one_each(rng: random.Random, where: Mapping[int, Sequence[int]], names: Sequence[int]) -> Tensor:
    """One of the tokens or places of every name."""
    return torch.tensor([rng.choice(where[n]) for n in names])


@torch.no_grad()
def found(memory: DeltaMemory, bank: Bank, named: Named, seed: int = 0) -> Cosines:
    """Measure how well keys are found, over some of the names that are both told and asked for."""
    told, asked = (
        grouped(zip(about.tolist(), where.tolist(), strict=True))
        for about, where in ((named.told_about, named.told), (named.asked_about, named.asked))
    )
    rng, both = random.Random(f"found-{seed}"), sorted(told.keys() & asked.keys())
    names = rng.sample(both, min(_COMPARED, len(both)))
    weights = stacked_weights(memory)
    one_told, one_asked = (one_each(rng, where, names) for where in (told, asked))
    keys = weights.unit(weights.key, telling(memory.config, bank, one_told).to(weights.key))
    queries = weights.unit(weights.query, bank.places[:, one_asked].to(weights.query))
    match = torch.einsum("lqhr,lkhr->lhqk", queries, keys).flatten(0, 1)
    mean, others = match.mean(0), ~torch.eye(len(names), dtype=torch.bool, device=match.device)
    apart = match - mean
    own, by_head = mean.diagonal(), apart.diagonal(dim1=1, dim2=2)
    # Of a single name nothing is known of others.
    of_others = (mean[others], apart[:, others]) if len(names) > 1 else (own * 0, by_head * 0)
    roots = [float(x.square().mean().sqrt()) for x in (own - own.mean(), by_head, *of_others)]
    return Cosines(float(own.mean()), *roots)


def _learn_to_say(memory: DeltaMemory, bank: Bank, cosines: Cosines, seed: int, report: Report | None) -> None:
    """Train W_v and D_o to say a told token, of the bank's words as well, at any place where a value is to come."""
    layers, tail = delta_layers(memory), Tail(memory)
    weights = [w for layer in layers for w in (layer.memory_v_proj, layer.delta_o_proj)]
    generator = torch.Generator().manual_seed(seed)
    places = bank.values.nonzero()[:, 0]
    words = bank.words
    ids = bank.told_ids if words is None else torch.cat([bank.told_ids, words.ids])
    shape = memory.config.num_state_heads, memory.config.rank
    said: deque[float] = deque(maxlen=_LATELY)
    along = _ALONG

    def some(there: int, count: int) -> Tensor:
        return torch.randint(there, (count,), generator=generator)

    def read_along() -> Tensor:
        """Cosines of every token's query with the keys of all, (layers, heads, said, said)."""
        of_all = torch.randn(_SAID, _SAID, generator=generator)
        by_head = torch.randn(len(layers), shape[0], _SAID, _SAID, generator=generator)
        there = torch.rand(_SAID, _SAID, generator=generator) < along / _SAID
        others = (cosines.others * of_all + cosines.others_by_head * by_head) * there * (1 - torch.eye(_SAID))
        own = cosines.own + cosines.spread * of_all.diagonal()
        own = own + cosines.own_by_head * by_head.diagonal(dim1=-2, dim2=-1)
        return _OPENED * (others + torch.diag_embed(own))

    def loss() -> Tensor:
        nonlocal along
        stacked = Stacked(layers)
        device = stacked.device
        told = some(len(bank.told_ids), _SAID)
        if words is not None:
            told[::2] = len(bank.told_ids) + some(len(words.ids), len(told[::2]))
        values = stacked.values(bank.said(told).to(device).float()).unflatten(-1, shape).transpose(1, 2)
        added = stacked.corrections((read_along().to(device) @ values).permute(2, 0, 1, 3))
        among = some_among(bank.candidates, ids[told], _AMONG, generator, device)
        residuals = bank.residuals[places[some(len(places), _SAID)]].to(device).float()
        logits, targets = among.logits(tail, residuals + added), among.numbers(ids[told])
        said.append(float((among.likeliest(logits) == targets).float().mean()))
        if len(said) == _LATELY and sum(said) > _SAID_WELL * _LATELY:
            along = min(along + _MORE, _MOST_ALONG)
        return F.cross_entropy(logits, targets)

    rates = [_SAYING_RATE] * len(weights)
    descend(weights, loss, _SAYING_STEPS, "learning to say what is read", report, rates=rates)


def telling(config: DeltaMemConfig, bank: Bank, told: Tensor, layer: int | slice = slice(None)) -> Tensor:
    """What keys of told tokens (n,) are made of, in a layer (n, hidden size) or in all (layers, n, hidden size).

    Where `own_share` goes by write gates the own token counts in full: how far they will stand open is not known yet.
    """
    own = bank.told[layer][..., told, :].float()
    if not bank.before.shape[1]:  # keys are made of a token alone
        return own
    return (config.own_share if config.fading else 1.0) * own + bank.before[layer][..., told, :].float()


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


def agreeing(
    x: Tensor, x_about: Tensor, y: Tensor, y_about: Tensor, count: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Directions in which x (n, hidden) and y (m, hidden) agree most among those that are about the same.

    Args:
        x: hidden states.
        x_about: (n,), a number for what each is about.
        y: hidden states.
        y_about: (m,).
        count: how many directions.
        first: the first of them, where 0 is the one in which they agree most.

    Returns:
        (count, hidden) for x and for y; zeros where there are no more.
    """
    classes = int(max(x_about.max(), y_about.max())) + 1
    x_white, y_white = _whitening(x), _whitening(y)
    x_mean, x_many = _means((x - x.mean(0)) @ x_white.T, x_about, classes)
    y_mean, y_many = _means((y - y.mean(0)) @ y_white.T, y_about, classes)
    both = (x_many > 0) & (y_many > 0)
    weight = (x_many * y_many)[both].sqrt()
    crossing = (x_mean[both] * weight[:, None]).T @ y_mean[both] / weight.sum()
    left, strength, right = torch.linalg.svd(crossing)
    last = max(first, min(first + count, int((strength > 0).sum())))
    pad = torch.zeros(count - (last - first), x.shape[1])
    return torch.cat([left.T[first:last] @ x_white, pad]), torch.cat([right[first:last] @ y_white, pad])


def _whitening(x: Tensor) -> Tensor:
    """What makes x uncorrelated and of unit variance, and takes its mean to nothing: projections have no bias."""
    mean = x.mean(0)
    spread = (x - mean).T @ (x - mean) / len(x)
    spread += _RIDGE * spread.diagonal().mean() * torch.eye(len(spread))
    sizes, vectors = torch.linalg.eigh(spread)
    white = vectors / sizes.sqrt() @ vectors.T
    constant = torch.nn.functional.normalize(white @ mean, dim=0)
    centred: Tensor = white - torch.outer(constant, constant @ white)
    return centred


def _means(x: Tensor, about: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    many = torch.bincount(about, minlength=classes).float()
    return torch.zeros(classes, x.shape[1]).index_add_(0, about, x) / many.clamp_min(1)[:, None], many
