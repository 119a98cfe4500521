"""Numbers, learnt after all else, which is left as it was.

An adapter that learnt words and names alone has its gates shut on digits, and finds nothing of what it writes there.
First gates learn to open where a number is told and where it is said: the joint gate, then those of single layers.
Then keys, values and queries learn with them, from histories that tell of numbers and of words. All of it is learnt in
directions that what tells and asks of words hardly has (`sparing.py`), and what was said of words is said again.
Where it is a second reader that learns to ask, words are read by the first as before, and the second goes on with
nothing of words to hold on to. Last, all layers learn whose reads count (`later.py`).
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
from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory
from deltamem.readers import SECOND
from deltamem.training.places.among import some_among
from deltamem.training.places.bank import Bank, Fact, Report, marked
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.draw import Drawing, Drawn
from deltamem.training.places.gated import Wanted, as_it_was, far_off, spread, there
from deltamem.training.places.later import alone, fit_route, put_back
from deltamem.training.places.sparing import Known, Sparing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers

_TOLD = ("memory_k_proj", "memory_v_proj", "beta_proj")
_ASKED = ("memory_q_proj", "read_gate_proj", "memory_base_proj")
_RATES = {"beta_proj": 3.0, "read_gate_proj": 3.0}
"""Of what learns faster than the rest."""
_GATES_ALONE = 0.2
"""Share of steps, beside the others, in which gates learn alone."""
_WRITTEN, _READ, _JOINT = 0.85, 0.97, 0.95
"""Least that gates are to be open where numbers are told, and where they are said."""
_READ_ALONE = 3.0
"""Weight of read gates that stay as they were in ordinary talk."""
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
_SHUT = 0.1
"""Most that the joint gate is to be open in talk with numbers in it, and in text that is nobody's talk."""
_LIKELIEST = 4
"""Tokens that the frozen backbone thinks likeliest at each of the latter, which are told apart as well."""
_SAID, _BEGUN, _NEVER, _GATES = 1.0, 1.5, 0.5, 2.0
"""Weights: of what is to be said of numbers, of how replies about them begin, of what was never told, and of gates."""


class _Held(NamedTuple):
    """How hard steps hold on to what there was.

    Attributes:
        kept: weight of what was said before of words and where other replies begin.
        alone: of leaving ordinary talk alone.
        words: of what is to be said of words.
        moved: of what moved.
        openings: places in a step where replies about numbers begin.
        other_openings: those where others do.
        idle: those in ordinary talk.
    """

    kept: float
    alone: float
    words: float
    moved: float
    openings: int
    other_openings: int
    idle: int


_HELD = _Held(kept=2.0, alone=4.0, words=0.3, moved=3.0, openings=128, other_openings=256, idle=192)
"""For a reader that words are read with as well."""
_FREE = _Held(kept=0.0, alone=0.5, words=0.0, moved=0.0, openings=192, other_openings=8, idle=32)
"""For a second one, on its own."""


def fit_numbers(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the joint gate, if there is one, and then W_k, W_v, W_q and the gates of single layers.

    Args:
        memory: whose adapter is changed; its corrections go to the last layer.
        bank: what its layers see.
        steps: of Adam; 300 for rank 64 in 26 layers take twenty minutes of a core. A second reader takes half as many
            again.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank tells no numbers, or nothing else.
    """
    layers = delta_layers(memory)
    readers = alone(layers, SECOND) if memory.config.second_reader else layers
    learning = _Learning(memory, readers, bank, seed)
    if memory.config.joint_gate:
        learning.open_jointly(steps, report)
    learning.open_gates(round(_GATES_ALONE * steps), report)
    learning.learn(steps, report)
    if memory.config.second_reader:
        learning.go_on_alone(steps // 2, report)
        put_back(layers, readers, SECOND)
        fit_route(layers, bank, learning.asked, bank.opening_numbers, SECOND, seed, report)


class _Learning:
    def __init__(self, memory: DeltaMemory, layers: list[DeltaLayer], bank: Bank, seed: int) -> None:
        self._memory, self._bank, self._tail = memory, bank, Tail(memory)
        self._layers = layers
        self._was = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in self._layers])
        self._held = _HELD
        self._generator, self._rng = torch.Generator().manual_seed(seed), random.Random(seed)
        of_numbers, of_words = _parted(bank.facts)
        if not of_numbers or not of_words:
            raise DataError("numbers are learnt of a bank that tells numbers and words; give more episodes (--bank)")
        # What is asked for in the reply to a statement may be of two facts, of which one alone is a number.
        told = marked(bank.told_ids, [fact for fact in of_numbers if not fact.noted], "told")
        asked = marked(bank.targets, _parted([*bank.facts, *bank.unknown])[0], "asked")
        after = torch.cat([bank.values[:1] & False, bank.values[:-1]])
        self.asked = asked
        self._numbers, self._words = told.nonzero()[:, 0], (~told).nonzero()[:, 0]
        self._said, self._digits = ((asked & at).nonzero()[:, 0] for at in (bank.values | after, bank.values))
        self._elsewhere = (~asked).nonzero()[:, 0]
        begun, every_idle = bank.opening_numbers, torch.arange(bank.idle.shape[1])
        self._talk, self._unseen = (some.nonzero()[:, 0] for some in (~bank.idle_unseen, bank.idle_unseen))
        self._begun, self._begun_otherwise = begun.nonzero()[:, 0], (~begun).nonzero()[:, 0]
        self._every_other, self._every_idle = torch.arange(bank.other.shape[1]), every_idle
        before = [(bank.before, self._words)] if bank.before.shape[1] else []
        known_told = self._known((bank.told, self._words), *before, (bank.other, self._every_other))
        openings = (bank.openings, self._begun_otherwise)
        self._known_asked = self._known((bank.places, self._elsewhere), openings, (bank.idle, every_idle))
        there_are = {"read_gate_proj": memory.config.read_gate, "memory_base_proj": memory.config.base_queries}
        asking = [name for name in _ASKED if there_are.get(name, True)]
        known = dict.fromkeys(_TOLD, known_told) | dict.fromkeys(asking, self._known_asked)
        self._sparing = Sparing(self._layers, known)
        self._spread_told, self._spread_asked = spread(bank.told), spread(bank.places)
        # As many words as numbers: of a bank's facts one in ten is a number.
        words = random.Random(seed).sample(of_words, min(len(of_words), len(of_numbers)))
        self._drawing = Drawing(replace(bank, facts=[*of_numbers, *words], stock=(), words=None))

    def open_jointly(self, steps: int, report: Report | None) -> None:
        bank = self._bank
        every = there(
            Wanted(bank.places, self._said, 128, 1.0, lambda gate: gate.clamp_min(_JOINT)),
            Wanted(bank.openings, self._begun, 64, 1.0, lambda gate: gate.clamp_min(_JOINT)),
            Wanted(bank.places, self._elsewhere, 128, 1.0, as_it_was),
            Wanted(bank.openings, self._begun_otherwise, 128, 1.0, as_it_was),
            Wanted(bank.idle, self._talk, 384, 4.0, as_it_was),
            Wanted(bank.idle, self._unseen, 192, 1.5, lambda gate: gate.clamp_max(_SHUT)),
        )
        sparing = Sparing(self._layers, {"joint_gate_proj": self._known_asked})

        def loss() -> Tensor:
            return far_off(_jointly_open, sparing.stacked(), self._was, every, self._generator)

        self._descend(sparing, loss, steps, "reading where numbers are", report)
        sparing.keep()

    def open_gates(self, steps: int, report: Report | None) -> None:
        self._descend(
            self._sparing, lambda: self._gates(self._sparing.stacked()), steps, "opening gates on numbers", report
        )

    def learn(self, steps: int, report: Report | None) -> None:
        self._descend(self._sparing, self._loss, steps, "learning numbers", report)
        self._sparing.keep()

    def go_on_alone(self, steps: int, report: Report | None) -> None:
        """Learn to ask for numbers, with nothing of words to hold on to."""
        known = self._known((self._bank.places, self._said), (self._bank.openings, self._begun))
        names = [name for name in self._sparing.steps if name in ("memory_q_proj", "read_gate_proj")]
        self._sparing, self._held = Sparing(self._layers, dict.fromkeys(names, known)), _FREE
        self.learn(steps, report)

    def _descend(
        self, sparing: Sparing, loss: Callable[[], Tensor], steps: int, what: str, report: Report | None
    ) -> None:
        rates = [_RATES.get(name, 1.0) for name in sparing.steps]
        descend(list(sparing.steps.values()), loss, steps, what, report, rates=rates)

    def _gates(self, now: Stacked) -> Tensor:
        """How far layers' gates are from being open at numbers, and from what they were elsewhere."""
        bank = self._bank
        written = []
        read = [Wanted(bank.places, self._digits, 128, 1.0, lambda gates: gates.clamp_min(_READ))]
        if self._held is _HELD:
            written = [
                Wanted(bank.told, self._numbers, 128, 1.0, lambda gates: gates.clamp_min(_WRITTEN)),
                Wanted(bank.told, self._words, 256, 3.0, as_it_was),
                Wanted(bank.other, self._every_other, 384, 3.0, as_it_was),
            ]
            read += [
                Wanted(bank.places, self._elsewhere, 192, 1.0, as_it_was),
                Wanted(bank.openings, self._begun_otherwise, 128, 1.0, as_it_was),
                Wanted(bank.idle, self._every_idle, 384, _READ_ALONE, as_it_was),
            ]
        loss = far_off(Stacked.write_gates, now, self._was, there(*written), self._generator)
        if self._memory.config.read_gate:
            loss = loss + far_off(Stacked.read_gates, now, self._was, there(*read), self._generator)
        return loss

    def _loss(self) -> Tensor:
        """Of one step: cross-entropy of numbers, of how replies about them begin, of words and of what was never told,
        the KL to what was said before of words and where other replies begin and to the frozen backbone in ordinary
        talk, gates, and what moved.
        """
        bank, now, held = self._bank, self._sparing.stacked(), self._held
        facts = self._rng.choice(_FACTS)
        drawn = self._drawing.histories(self._rng, facts, max(8, _ROWS // facts), _UNKNOWN, _PLACES)
        told = self._histories(drawn)
        begun = torch.cat(
            [
                of[some_of(len(of), count, self._generator)]
                for of, count in ((self._begun, held.openings), (self._begun_otherwise, held.other_openings))
            ]
        )
        idle = some_of(bank.idle.shape[1], held.idle, self._generator)
        hidden = torch.cat([bank.places[:, drawn.places], bank.openings[:, begun], bank.idle[:, idle]], dim=1)
        hidden = noisy(hidden, self._spread_asked, self._generator)
        idle_residuals = bank.idle_residuals[idle]
        residuals = torch.cat([bank.residuals[drawn.places], bank.opening_residuals[begun], idle_residuals])
        asked, besides = len(drawn.places), len(begun) + len(idle)
        targets = torch.cat([drawn.targets, bank.opening_targets[begun]])
        rows = torch.cat([drawn.rows, torch.randint(len(drawn.told), (besides,), generator=self._generator)])
        with torch.no_grad():
            likely = self._tail(idle_residuals.to(self._was.device)).topk(_LIKELIEST).indices.flatten().cpu()
        said = torch.cat([targets, likely])
        among = some_among(bank.candidates, said, _AMONG, self._generator, self._was.device)
        found = among.logits(self._tail, now.bent(hidden, residuals, now.written(*told)[0], rows))
        with torch.no_grad():
            frozen = among.logits(self._tail, idle_residuals.to(self._was.device).float())
        each = F.cross_entropy(found[: len(targets)], among.numbers(targets), reduction="none")
        never = drawn.targets == bank.unsaid
        numbers, words = (some & ~never for some in (self.asked[drawn.places], ~self.asked[drawn.places]))
        begins = bank.opening_numbers[begun]
        parts = [
            (_SAID, each[:asked][numbers]),
            (_BEGUN, each[asked:][begins]),
            (held.words, each[:asked][words]),
            (_NEVER, each[:asked][never]),
        ]
        loss = torch.stack([weight * part.sum() / max(1, len(part)) for weight, part in parts]).sum()
        if held.kept:
            with torch.no_grad():
                was = among.logits(self._tail, self._was.bent(hidden, residuals, self._was.written(*told)[0], rows))
            for kept in (words.nonzero()[:, 0], asked + (~begins).nonzero()[:, 0]):
                loss = loss + held.kept * divergence(found[kept], was[kept]) / max(1, len(kept))
        loss = loss + held.alone * divergence(found[len(targets) :], frozen) / max(1, len(idle))
        return loss + _GATES * self._gates(now) + held.moved * self._sparing.moved()

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

    def _known(self, *sorts: tuple[Tensor, Tensor]) -> Known:
        """Of some of hidden states (layers, n, hidden size), of those that are numbered."""
        return Known.of_some(self._generator, self._was.device, *sorts)


def _jointly_open(layers: Stacked, hidden: Tensor) -> Tensor:
    return torch.sigmoid(layers.joint_logits(hidden))


def _parted(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Those that are about a number, and the others."""
    numbers = [fact for fact in facts if is_number(fact.topic.relation)]
    return numbers, [fact for fact in facts if not is_number(fact.topic.relation)]
