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
from deltamem.evaluation.ordinary import divergence
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
_OPENINGS, _IDLE = 192, 192
"""Places in a step where replies begin, and in ordinary talk."""
_SAID, _BEGUN, _KEPT, _ALONE, _WORDS, _NEVER, _GATES, _MOVED = 1.0, 1.5, 2.0, 4.0, 0.3, 0.5, 2.0, 3.0
"""Weights: of what is to be said of numbers, of how replies begin, of what was said before of words and in ordinary
talk, of what is to be said of words, of what was never told, of gates, and of what moved.
"""


class _Sort(NamedTuple):
    """Some of a bank's hidden states (layers, n, hidden size): those numbered `numbers`."""

    hidden: Tensor
    numbers: Tensor

    @staticmethod
    def where(hidden: Tensor, chosen: Tensor | None = None) -> _Sort:
        """Those `chosen`, (n,), or all."""
        numbers = torch.arange(hidden.shape[1]) if chosen is None else chosen.nonzero()[:, 0]
        return _Sort(hidden, numbers)

    def some(self, count: int, generator: torch.Generator) -> Tensor:
        """So many of them, or all where there are no more."""
        few = len(self.numbers) <= count
        return self.hidden[:, self.numbers if few else self.numbers[some_of(len(self.numbers), count, generator)]]


class _Opening(NamedTuple):
    """Gates, and where they are to be open and to stay as they were.

    Attributes:
        gates: of layers at hidden states.
        open: where they are to be open by `least` at least.
        least: see `open`.
        others: (where they are to stay, how many of these a step looks at, their weight).
    """

    gates: Callable[[Stacked, Tensor], Tensor]
    open: _Sort
    least: float
    others: Sequence[tuple[_Sort, int, float]]


def fit_numbers(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the joint gate, if there is one, and then W_k, W_v, W_q and the gates of single layers.

    Args:
        memory: whose adapter is changed; its corrections go to the last layer.
        bank: what its layers see.
        steps: of Adam; 300 for rank 64 in 26 layers take twenty minutes of a core.
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
        # What is asked for in the reply to a statement may be of two facts, of which one alone is a number.
        told = _marked(bank.told_ids, [fact for fact in of_numbers if not fact.noted], "told")
        asked = _marked(bank.targets, _parted([*bank.facts, *bank.unknown])[0], "asked")
        after = torch.cat([bank.values[:1] & False, bank.values[:-1]])
        self._asked = asked
        self._numbers, self._words = (_Sort.where(bank.told, some) for some in (told, ~told))
        self._said, self._digits = (_Sort.where(bank.places, asked & at) for at in (bank.values | after, bank.values))
        self._elsewhere = _Sort.where(bank.places, ~asked)
        self._other, self._openings, self._idle = map(_Sort.where, (bank.other, bank.openings, bank.idle))
        known_told = self._known(self._words, _Sort.where(bank.before, ~told[: bank.before.shape[1]]), self._other)
        self._known_asked = self._known(self._elsewhere, self._openings, self._idle)
        asking = [name for name in _ASKED if name == "memory_q_proj" or memory.config.read_gate]
        known = dict.fromkeys(_TOLD, known_told) | dict.fromkeys(asking, self._known_asked)
        self._sparing = Sparing(self._layers, known)
        self._spread_told, self._spread_asked = _spread(bank.told), _spread(bank.places)
        # As many words as numbers: of a bank's facts one in ten is a number.
        words = random.Random(seed).sample(of_words, min(len(of_words), len(of_numbers)))
        self._drawing = Drawing(replace(bank, facts=[*of_numbers, *words], stock=(), words=None))

    def open_jointly(self, steps: int, report: Report | None) -> None:
        others = [(self._elsewhere, 128, 1.0), (self._openings, 128, 1.0), (self._idle, 384, 4.0)]
        opening = _Opening(lambda now, hidden: torch.sigmoid(now.joint_logits(hidden)), self._said, _JOINT, others)
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
        written = [(self._words, 128, 1.0), (self._other, 384, 3.0)]
        loss = self._opened(_Opening(Stacked.write_gates, self._numbers, _WRITTEN, written), now)
        if self._memory.config.read_gate:
            others = [(self._elsewhere, 192, 1.0), (self._openings, 128, 1.0), (self._idle, 384, 4.0)]
            loss = loss + self._opened(_Opening(Stacked.read_gates, self._digits, _READ, others), now)
        return loss

    def _opened(self, opening: _Opening, now: Stacked) -> Tensor:
        def apart(sort: _Sort, count: int, least: float) -> Tensor:
            some = noisy(sort.some(count, self._generator), _spread(sort.hidden), self._generator)
            some = some.to(self._was.device)
            wanted = opening.gates(self._was, some).clamp_min(least)
            return F.binary_cross_entropy(opening.gates(now, some).clamp(1e-6, 1 - 1e-6), wanted)

        loss = apart(opening.open, 128, opening.least)
        there = [other for other in opening.others if len(other[0].numbers)]
        return loss + sum(
            (weight * apart(sort, count, 0.0) for sort, count, weight in there), torch.zeros((), device=loss.device)
        )

    def _loss(self) -> Tensor:
        """Of one step: cross-entropy of numbers, of how replies begin, of words and of what was never told, the KL to
        what was said before of words and in ordinary talk, gates, and what moved.
        """
        bank, now = self._bank, self._sparing.stacked()
        facts = self._rng.choice(_FACTS)
        drawn = self._drawing.histories(self._rng, facts, max(8, _ROWS // facts), _UNKNOWN, _PLACES)
        told = self._histories(drawn)
        begun = some_of(bank.openings.shape[1], _OPENINGS, self._generator)
        idle = some_of(bank.idle.shape[1], _IDLE, self._generator)
        hidden = torch.cat([bank.places[:, drawn.places], bank.openings[:, begun], bank.idle[:, idle]], dim=1)
        hidden = noisy(hidden, self._spread_asked, self._generator)
        residuals = torch.cat([bank.residuals[drawn.places], bank.opening_residuals[begun], bank.idle_residuals[idle]])
        asked, besides = len(drawn.places), len(begun) + len(idle)
        targets = torch.cat([drawn.targets, bank.opening_targets[begun]])
        rows = torch.cat([drawn.rows, torch.randint(len(drawn.told), (besides,), generator=self._generator)])
        among = some_among(bank.candidates, targets, _AMONG, self._generator, self._was.device)
        found = among.logits(self._tail, now.bent(hidden, residuals, now.written(*told)[0], rows))
        with torch.no_grad():
            was = among.logits(self._tail, self._was.bent(hidden, residuals, self._was.written(*told)[0], rows))
        each = F.cross_entropy(found[: len(targets)], among.numbers(targets), reduction="none")
        never = drawn.targets == bank.unsaid
        numbers, words = self._asked[drawn.places] & ~never, ~self._asked[drawn.places] & ~never
        parts = [
            (_SAID, each[:asked][numbers]),
            (_BEGUN, each[asked:]),
            (_WORDS, each[:asked][words]),
            (_NEVER, each[:asked][never]),
        ]
        loss = torch.stack([weight * part.sum() / max(1, len(part)) for weight, part in parts]).sum()
        talk = torch.arange(len(targets), len(found))
        for weight, some in ((_KEPT, words.nonzero()[:, 0]), (_ALONE, talk)):
            loss = loss + weight * divergence(found[some], was[some]) / max(1, len(some))
        return loss + _GATES * self._gates(now) + _MOVED * self._sparing.moved()

    def _histories(self, drawn: Drawn) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """What `Stacked.written` takes."""
        bank, shape = self._bank, drawn.told.shape

        def of(hidden: Tensor) -> Tensor:
            found: Tensor = noisy(hidden, self._spread_told, self._generator).unflatten(1, shape)
            return found.to(self._was.device)

        told = drawn.told.flatten()
        # Where nothing was written before there are zeros, and they stay.
        before = bank.before[:, told].to(self._was.device).float().unflatten(1, shape) if bank.before.shape[1] else None
        valid = drawn.valid.to(self._was.device)
        return of(bank.told[:, told]), before, of(bank.said(drawn.said.flatten())), valid

    def _known(self, *sorts: _Sort) -> Known:
        return Known.of(*(sort.some(_SAMPLE, self._generator).to(self._was.device) for sort in sorts))


def _parted(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Those that are about a number, and the others."""
    numbers = [fact for fact in facts if is_number(fact.topic.relation)]
    return numbers, [fact for fact in facts if not is_number(fact.topic.relation)]


def _marked(like: Tensor, facts: Sequence[Fact], what: str) -> Tensor:
    """Which tokens, or places, are of the facts, (n,)."""
    marked = torch.zeros(len(like), dtype=torch.bool)
    marked[[number for fact in facts for number in getattr(fact, what)]] = True
    return marked


def _spread(hidden: Tensor) -> Tensor:
    return hidden[:, :256].float().std(dim=(1, 2))[:, None, None]
