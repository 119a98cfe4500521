"""A start for keys, queries, values and corrections, in closed form from the bank.

* **W_k, W_q**: the directions in which the hidden state of a told value and that of the place where it is asked for
  agree most on what the fact is about (`directions.py`), turned at random so that every head gets as much of them as
  every other.
* **W_v, D_o**: a code of the token, as in `training/warm_start.py`; what is added to the last residual gives it back.
  Beside a residual ten times as long that is hardly heard, and beside what else was told it is not told apart. So the
  two then learn, alone, to say a token among others that are read along with it, and of those there are more as soon
  as it is said. No history has to be written for that: how well queries find keys is measured once.
"""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.grouped import grouped
from deltamem.memory import DeltaMemory
from deltamem.training.fitting import stacked_weights
from deltamem.training.places.among import some_among
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend
from deltamem.training.places.directions import Directions
from deltamem.training.places.names import Named, one_each, pairs, telling
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers, fit_values

_SCALE = 0.3
"""Length of keys before the hyperbolic tangent: small, so that it bends them little at first."""
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
    says what it said.
    """
    _fit_keys(memory, bank, pairs(bank), seed, report)


def _fit_keys(memory: DeltaMemory, bank: Bank, named: Named, seed: int, report: Report | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers, directions = delta_layers(memory), Directions(named)
    for i, layer in enumerate(layers):
        if report is not None:
            report("fitting keys", i / len(layers))
        told, asked = telling(memory.config, bank, named.told, i), bank.places[i][named.asked].float()
        keys, queries = directions.fitted(i, told, asked, len(layer.memory_k_proj))
        turn = torch.linalg.qr(torch.randn(len(keys), len(keys), generator=generator))[0].to(keys)
        with torch.no_grad():
            layer.memory_k_proj.copy_(_SCALE * turn @ keys)
            layer.memory_q_proj.copy_(_SCALE * turn @ queries)


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
