"""How memory is read, trained on its own after all else: queries, read gates and the base state.

What a reply begins with hangs on the question alone, and there are more ways to ask than any bank holds, so every one
there is is drawn beside places of histories. The reply to a statement comes when that has been written, and what it has
just left in the state is found at once, so those are drawn with it. Nothing that is written is touched: a state means
what it meant. Histories are drawn anew in each step, with any word of the bank's told in them. Held to what was said of
a few thousand facts alone, queries found values that were in no bank less often (benchmarks/places.md). In the same
steps read gates are shut in ordinary talk, if no joint gate does that for all layers (`joint.py`), and what is said in
it is held to what the frozen backbone says. On request, what is close to what was told and was not told itself is asked
for beside it (`close.py`), and corrections learn as well: which layers tell the two apart is for them to weigh.
"""

from __future__ import annotations

import copy
import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.evaluation.ordinary import divergence
from deltamem.memory import DeltaMemory
from deltamem.training.places.among import Among, some_among
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.close import TOLD_WEIGHT, Close
from deltamem.training.places.descent import descend, noisy
from deltamem.training.places.draw import Drawing, Drawn
from deltamem.training.places.nearness import nearest
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.states import states_of
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers

_FACTS = (1, 2, 4, 8, 16)
_ROWS = 24
"""Histories in a step, all of as many facts."""
_BEFORE = (0, 0, 1, 4, 8)
"""Facts told before a statement whose reply is looked at."""
_STATEMENTS = 24
"""Of those in a step."""
_CLOSE_ROWS = 48
"""Histories in a step of which what is close to what was told is asked for as well."""
_UNKNOWN = 0.5
"""Chance, per fact told, that something never told is asked for."""
_EMPTY = 0.3
"""Share of openings that are read with nothing told."""
_OPENINGS, _PLACES, _IDLE = 384, 384, 256
"""In a step."""
_IDLE_BEGINS = 0.5
"""Share of those in ordinary talk that are where replies begin: there it shows whether one is asked about oneself."""
_AMONG, _AMONG_OPENINGS = 2048, 256
"""Tokens each is told apart from in a step, at most, besides those said in it: of all, and of those that replies begin
with."""
_BEGUN, _STATED, _SAID, _KEPT, _QUIET, _ALONE = 1.5, 1.5, 1.0, 1.0, 8.0, 2.0
"""Weights: of how replies begin, of replies to statements, of what is to be said of what was told, of what was said of
it before, and of read gates and of what is said in ordinary talk.
"""
_MARGIN = 0.5
"""Logits that a gate which is to be shut is to be below its floor."""
_RATES = {
    "memory_q_proj": 1.0,
    "second_q_proj": 1.0,
    "memory_base_proj": 1.0,
    "read_gate_proj": 3.0,
    "second_read_gate_proj": 3.0,
    "read_gate_bias": 3.0,
    "base_state": 4.0,
}
"""Of what is trained, relative to other fits."""
_RATES_OF_CLOSE = {"delta_o_proj": 1.0}
"""The same of what is trained as well where what is close has a weight."""
_CLIP = 5.0


def fit_reading(
    memory: DeltaMemory,
    bank: Bank,
    steps: int,
    seed: int = 0,
    report: Report | None = None,
    close_weight: float = 0.0,
) -> None:
    """Train W_q, the read gates and the base state; of both readers, where there are two.

    Args:
        memory: whose adapter is changed; its corrections go to the last layer.
        bank: what its layers see; with its words, what is learnt holds for values that are in none.
        steps: of Adam; 400 of rank 64 in 26 layers take seven minutes of one core.
        seed: of everything random.
        report: called with what is being done and the share done.
        close_weight: of telling what was told from what is close to it; with any, D_o is trained as well.
    """
    asking = Asking(memory, bank, seed, close_weight)
    of = _RATES | _RATES_OF_CLOSE if close_weight else _RATES
    there = dict(memory.adapter.named_parameters())
    trained = [(w, of[kind]) for name, w in there.items() if (kind := name.rpartition(".")[2]) in of]
    weights, rates = zip(*trained, strict=True)
    descend(weights, asking.loss, steps, "learning to read", report, _CLIP, rates)


class Asking:
    """Openings of replies, places of histories, and ordinary talk.

    Args:
        memory: of an adapter; it is held to what that says of histories when this is made.
        bank: what its layers see.
        seed: of everything random.
        close_weight: see `fit_reading`.
    """

    def __init__(self, memory: DeltaMemory, bank: Bank, seed: int = 0, close_weight: float = 0.0) -> None:
        self._memory, self._bank, self._tail = memory, bank, Tail(memory)
        self._generator, self._rng = torch.Generator().manual_seed(seed), random.Random(seed)
        near = nearest(bank)
        self._drawing = Drawing(bank, near)
        self._before = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in delta_layers(memory)])
        self._close = Close(self._drawing, bank, near, self._tail) if close_weight else None
        self._close_weight = close_weight
        self._spread = bank.places[:, :256].float().std(dim=(1, 2))[:, None, None]
        self._begun_with = torch.unique(bank.opening_targets)
        self._idle_begins = bank.idle_begins.nonzero()[:, 0]
        floor = memory.config.read_gate_floor
        self._shut = math.log(floor / (1 - floor)) - _MARGIN if floor else 0.0

    def loss(self) -> Tensor:
        """Of one step: cross-entropy where replies begin, in those to statements, of what was told and of what is close
        to it, the KL to what was said before, and, in ordinary talk, how far read gates are from being shut and the KL
        to the frozen backbone.
        """
        bank, now = self._bank, Stacked(delta_layers(self._memory))
        drawn = self._drawing.histories(self._rng, self._rng.choice(_FACTS), _ROWS, _UNKNOWN, _PLACES)
        states = states_of(self._before, bank, drawn)
        told = (torch.rand(len(drawn.told), generator=self._generator) >= _EMPTY).to(states)
        some_told = states * told[:, None, None, None]
        some = self._any(bank.openings.shape[1], _OPENINGS)
        rows = self._any(len(drawn.told), _OPENINGS)
        hidden = noisy(bank.openings[:, some], self._spread, self._generator)
        targets = bank.opening_targets[some]
        among = self._among(torch.cat([targets, drawn.targets]))
        begun = self._said(now, hidden, bank.opening_residuals[some], some_told, rows, among)
        loss = _BEGUN * F.cross_entropy(begun, among.numbers(targets))
        hidden = noisy(bank.places[:, drawn.places], self._spread, self._generator)
        asked = hidden, bank.residuals[drawn.places], states, drawn.rows, among
        found = self._said(now, *asked)
        with torch.no_grad():
            was = self._said(self._before, *asked)
        loss = loss + _SAID * F.cross_entropy(found, among.numbers(drawn.targets))
        loss = loss + _KEPT * divergence(found, was) / len(found)
        loss = loss + _STATED * self._stated(now) + self._of_close(now)
        return loss + self._in_ordinary_talk(now, some_told, among) if bank.idle.shape[1] else loss

    def _stated(self, now: Stacked) -> Tensor:
        """Cross-entropy of replies to statements, which were written when they are replied to."""
        # Openings know nothing of that: after "Got it." a query finds the value that was just told, and says it there.
        drawn = self._drawing.statements(self._rng, self._rng.choice(_BEFORE), _STATEMENTS)
        return self._each(now, drawn).sum() / max(1, len(drawn.places))

    def _of_close(self, now: Stacked) -> Tensor:
        """Cross-entropy of what was told and of what is close to it and was not."""
        if self._close is None or not len((drawn := self._close.histories(self._rng, _CLOSE_ROWS)).places):
            return torch.zeros((), device=now.device)
        each, never = self._each(now, drawn), (drawn.targets == self._bank.unsaid).to(now.device)
        of_told = TOLD_WEIGHT * each[~never].sum() / (~never).sum().clamp_min(1)
        return self._close_weight * (of_told + each[never].sum() / never.sum().clamp_min(1))

    def _each(self, now: Stacked, drawn: Drawn, states: Tensor | None = None) -> Tensor:
        """Cross-entropy at each place that was drawn, (P,); none where none was. `states` are those of the histories,
        where they are worked out already.
        """
        if not len(drawn.places):
            return torch.zeros(0, device=now.device)
        if states is None:
            states = states_of(self._before, self._bank, drawn)
        among = self._among(drawn.targets)
        hidden = noisy(self._bank.places[:, drawn.places], self._spread, self._generator)
        said = self._said(now, hidden, self._bank.residuals[drawn.places], states, drawn.rows, among)
        return F.cross_entropy(said, among.numbers(drawn.targets), reduction="none")

    def _in_ordinary_talk(self, now: Stacked, states: Tensor, among: Among) -> Tensor:
        bank, begins = self._bank, round(_IDLE_BEGINS * _IDLE)
        anywhere = self._any(bank.idle.shape[1], _IDLE - begins)
        some = torch.cat([anywhere, self._idle_begins[self._any(len(self._idle_begins), begins)]])
        hidden = noisy(bank.idle[:, some], self._spread, self._generator)
        residuals, rows = bank.idle_residuals[some], self._any(states.shape[1], _IDLE)
        with torch.no_grad():
            frozen = among.logits(self._tail, residuals.to(now.device).float())
        loss = _ALONE * divergence(self._said(now, hidden, residuals, states, rows, among), frozen) / len(some)
        if self._memory.config.read_gate and not self._memory.config.joint_gate:
            gates = torch.logit(now.read_gates(hidden.to(now.device)), eps=1e-6)
            loss = loss + _QUIET * F.softplus(gates - self._shut).mean()
        return loss

    def _any(self, there: int, count: int) -> Tensor:
        return torch.randint(there, (count,), generator=self._generator)

    def _among(self, said: Tensor) -> Among:
        """What is said, and what else a reply could begin with or say."""
        bank, begin = self._bank, self._begun_with
        said = torch.cat([said, begin[self._any(len(begin), _AMONG_OPENINGS)], torch.tensor([bank.unsaid])])
        return some_among(bank.candidates, said, _AMONG, self._generator, self._before.device)

    def _said(
        self, stacked: Stacked, hidden: Tensor, residuals: Tensor, states: Tensor, rows: Tensor, among: Among
    ) -> Tensor:
        """Logits `among` tokens, (P, n), at places (layers, P, hidden size) of the states of `rows`."""
        return among.logits(self._tail, stacked.bent(hidden, residuals, states, rows))
