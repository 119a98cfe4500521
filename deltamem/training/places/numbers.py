"""Numbers, learnt after all else, which is left as it was.

An adapter that learnt words and names alone has its gates shut on digits, and finds nothing of what it writes there.
First gates learn to open where a number is told and where it is said: the joint gate, then those of single layers.
Then keys, values and queries learn with them, from histories that tell of numbers and of words. All of it is learnt in
directions that what tells and asks of words hardly has (`sparing.py`), and what was said of words is said again.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.numbers import is_number
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.among import some_among
from deltamem.training.places.bank import Bank, Fact, Report
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.draw import Drawing, Drawn
from deltamem.training.places.sparing import Known, Sparing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers

_TOLD = ("memory_k_proj", "memory_v_proj", "beta_proj")
_ASKED = ("memory_q_proj", "read_gate_proj")
_RATES = {"beta_proj": 3.0, "read_gate_proj": 3.0}
"""Of what learns faster than the rest."""
_GATES_ALONE = 0.2
"""Share of steps, beside the others, in which gates learn alone."""
_WRITTEN, _READ, _JOINT = 0.85, 0.97, 0.95
"""Least that gates are to be open where numbers are told, and where they are said."""
_FACTS = (1, 1, 2, 3, 4, 8)
"""How many are told in a history, each as often as it stands here."""
_PLACES = 256
"""Of values in a step."""
_ROWS = 128
"""Histories in a step, at most, of one fact each."""
_UNKNOWN = 0.4
"""Chance, per fact told, that something never told is asked for."""
_AMONG = 1024
"""Tokens each is told apart from in a step, at most, besides those said in it."""
_SAMPLE = 12000
"""Hidden states of a sort that are looked at, at most, for how they vary."""
_SAID, _KEPT, _WORDS, _NEVER, _GATES, _MOVED = 1.0, 2.0, 0.3, 0.5, 2.0, 3.0
"""Weights: of what is to be said of numbers, of what was said of words before, of what is to be said of them, of what
was never told, of gates, and of what moved.
"""


class _Opening(NamedTuple):
    """Gates, and where they are to be open and to stay as they were.

    Attributes:
        gates: of layers at hidden states.
        open: hidden states at which they are to be open by `least` at least.
        least: see `open`.
        others: (hidden states at which they are to stay, how many of these a step looks at, their weight).
    """

    gates: Callable[[Stacked, Tensor], Tensor]
    open: Tensor
    least: float
    others: Sequence[tuple[Tensor, int, float]]


def fit_numbers(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the joint gate, if there is one, and then W_k, W_v, W_q and the gates of single layers.

    Args:
        memory: whose adapter is changed; its corrections go to the last layer.
        bank: what its layers see.
        steps: of Adam; 300 for rank 64 in 26 layers take ten minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank tells no numbers, or nothing else.
    """
    learning = _Learning(memory, bank, seed)
    if memory.config.joint_gate:
        learning.open_jointly(steps, report)
    learning.open_gates(round(_GATES_ALONE * steps), report)
    learning.learn(steps, report)


class _Learning:
    def __init__(self, memory: DeltaMemory, bank: Bank, seed: int) -> None:
        self._memory, self._bank, self._tail = memory, bank, Tail(memory)
        self._layers = delta_layers(memory)
        self._was = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in self._layers])
        self._generator, self._rng = torch.Generator().manual_seed(seed), random.Random(seed)
        of_numbers, of_words = _parted(bank.facts)
        if not of_numbers or not of_words:
            raise DataError("numbers are learnt of a bank that tells numbers and words; give more episodes (--bank)")
        told, asked = _marked(bank.told_ids, of_numbers, "told"), _marked(bank.targets, _numeric(bank), "asked")
        after = torch.cat([bank.values[:1] & False, bank.values[:-1]])
        said = asked & (bank.values | after)
        self._asked = asked
        self._numbers, self._words = bank.told[:, told], bank.told[:, ~told]
        self._said, self._elsewhere = bank.places[:, said], bank.places[:, ~asked]
        self._first = bank.places[:, asked & bank.values]
        known_told = Known.of(
            *map(self._some, (self._words, bank.before[:, ~told[: bank.before.shape[1]]], bank.other))
        )
        self._known_asked = Known.of(*map(self._some, (self._elsewhere, bank.openings, bank.idle)))
        asking = [name for name in _ASKED if name == "memory_q_proj" or memory.config.read_gate]
        known = dict.fromkeys(_TOLD, known_told) | dict.fromkeys(asking, self._known_asked)
        self._sparing = Sparing(self._layers, known)
        self._spread_told, self._spread_asked = _spread(bank.told), _spread(bank.places)
        # As many words as numbers: of a bank's facts one in ten is a number.
        words = random.Random(seed).sample(of_words, min(len(of_words), len(of_numbers)))
        self._drawing = Drawing(replace(bank, facts=[*of_numbers, *words], stock=(), words=None))

    def open_jointly(self, steps: int, report: Report | None) -> None:
        bank = self._bank
        opening = _Opening(
            lambda stacked, hidden: torch.sigmoid(stacked.joint_logits(hidden)),
            self._said,
            _JOINT,
            [(self._elsewhere, 128, 1.0), (bank.openings, 128, 1.0), (bank.idle, 384, 4.0)],
        )
        sparing = Sparing(self._layers, {"joint_gate_proj": self._known_asked})
        self._descend(
            sparing, lambda: self._opened(opening, sparing.stacked()), steps, "reading where numbers are", report
        )
        sparing.keep()

    def open_gates(self, steps: int, report: Report | None) -> None:
        self._descend(
            self._sparing, lambda: self._gates(self._sparing.stacked()), steps, "opening gates on numbers", report
        )

    def learn(self, steps: int, report: Report | None) -> None:
        self._descend(self._sparing, self._loss, steps, "learning numbers", report)
        self._sparing.keep()

    def _descend(
        self, sparing: Sparing, loss: Callable[[], Tensor], steps: int, what: str, report: Report | None
    ) -> None:
        rates = [_RATES.get(name, 1.0) for name in sparing.steps]
        descend(list(sparing.steps.values()), loss, steps, what, report, rates=rates)

    def _gates(self, now: Stacked) -> Tensor:
        """How far layers' gates are from being open at numbers, and from what they were elsewhere."""
        bank = self._bank
        written = [(self._words, 128, 1.0), (bank.other, 384, 3.0)]
        loss = self._opened(_Opening(Stacked.write_gates, self._numbers, _WRITTEN, written), now)
        if self._memory.config.read_gate:
            others = [(self._elsewhere, 192, 1.0), (bank.openings, 128, 1.0), (bank.idle, 256, 2.0)]
            loss = loss + self._opened(_Opening(Stacked.read_gates, self._first, _READ, others), now)
        return loss

    def _opened(self, opening: _Opening, now: Stacked) -> Tensor:
        def apart(hidden: Tensor, count: int, least: float) -> Tensor:
            some = noisy(self._some(hidden, count), _spread(hidden), self._generator)
            wanted = opening.gates(self._was, some).clamp_min(least)
            return F.binary_cross_entropy(opening.gates(now, some).clamp(1e-6, 1 - 1e-6), wanted)

        loss = apart(opening.open, 128, opening.least)
        there = [other for other in opening.others if other[0].shape[1]]
        return loss + sum((weight * apart(hidden, count, 0.0) for hidden, count, weight in there), torch.zeros(()))

    def _loss(self) -> Tensor:
        """Of one step: cross-entropy of numbers, of words and of what was never told, the KL to what was said of words
        before, gates, and what moved.
        """
        bank, now = self._bank, self._sparing.stacked()
        facts = self._rng.choice(_FACTS)
        drawn = self._drawing.histories(self._rng, facts, max(8, _ROWS // facts), _UNKNOWN, _PLACES)
        told = self._histories(drawn)
        states = now.written(*told)[0]
        hidden = noisy(bank.places[:, drawn.places], self._spread_asked, self._generator)
        among = some_among(bank.candidates, drawn.targets, _AMONG, self._generator, self._was.device)
        asked = hidden, bank.residuals[drawn.places]
        found = among.logits(self._tail, now.bent(*asked, states, drawn.rows))
        with torch.no_grad():
            was = among.logits(self._tail, self._was.bent(*asked, self._was.written(*told)[0], drawn.rows))
        each = F.cross_entropy(found, among.numbers(drawn.targets), reduction="none")
        kept = F.kl_div(found.log_softmax(-1), was.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        never = drawn.targets == bank.unsaid
        numbers, words = self._asked[drawn.places] & ~never, ~self._asked[drawn.places] & ~never
        loss = _SAID * _mean(each, numbers) + _WORDS * _mean(each, words) + _NEVER * _mean(each, never)
        of_gates, moved = self._gates(now), self._sparing.moved()
        return loss + _KEPT * _mean(kept, words) + _GATES * of_gates + _MOVED * moved

    def _histories(self, drawn: Drawn) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """What `Stacked.written` takes."""
        bank, shape = self._bank, drawn.told.shape

        def of(hidden: Tensor) -> Tensor:
            found: Tensor = noisy(hidden, self._spread_told, self._generator).unflatten(1, shape)
            return found

        told = drawn.told.flatten()
        # Where nothing was written before there are zeros, and they stay.
        before = bank.before[:, told].float().unflatten(1, shape) if bank.before.shape[1] else None
        return of(bank.told[:, told]), before, of(bank.said(drawn.said.flatten())), drawn.valid

    def _some(self, hidden: Tensor, count: int = _SAMPLE) -> Tensor:
        """Some of hidden states (layers, n, hidden size), or all where there are no more."""
        if hidden.shape[1] <= count:
            return hidden
        return hidden[:, some_of(hidden.shape[1], count, self._generator)]


def _parted(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Those that tell a number, and the others; a reply to a statement may be about several, and is left out."""
    some = [fact for fact in facts if not fact.noted]
    numbers = [fact for fact in some if is_number(fact.topic.relation)]
    return numbers, [fact for fact in some if not is_number(fact.topic.relation)]


def _numeric(bank: Bank) -> list[Fact]:
    """All that are about a number, told or not."""
    return [fact for fact in (*bank.facts, *bank.unknown) if is_number(fact.topic.relation)]


def _marked(like: Tensor, facts: Sequence[Fact], what: str) -> Tensor:
    """Which tokens, or places, are of the facts, (n,)."""
    marked = torch.zeros(len(like), dtype=torch.bool)
    marked[[number for fact in facts for number in getattr(fact, what)]] = True
    return marked


def _spread(hidden: Tensor) -> Tensor:
    return hidden[:, :256].float().std(dim=(1, 2))[:, None, None]


def _mean(each: Tensor, where: Tensor) -> Tensor:
    mean: Tensor = each[where].sum() / where.sum().clamp_min(1)
    return mean
