"""What a later reader is for: the places and openings it is to read at, and what is wanted of it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report, marked
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.draw import Drawn
from deltamem.training.places.reading import Asking
from deltamem.training.places.sparing import Known, Sparing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.states import states_of

_RATES = {"memory_q_proj": 1.0, "read_gate_proj": 3.0}
"""Of what a later reader learns, relative to other fits."""
_FACTS = (1, 1, 2, 3, 4, 8)
"""How many are told in a history, each as often as it stands here."""
_ROWS, _FEWEST = 48, 12
"""Histories of one fact in a step, and fewest of many."""
_BEFORE, _STATEMENTS = (0, 0, 1, 4, 8), 12
"""Facts told before a statement whose reply is looked at, and statements in a step."""
_UNKNOWN = 0.8
"""Chance, per fact told, that something never told is asked for."""
_PLACES, _OPENINGS = 512, 256
"""In a step, of which those that the reader is for are looked at."""
_BEGUN, _STATED, _REST, _IN_IDLE = 1.5, 1.0, 0.4, 0.25
"""Weights: of how replies begin, of replies to statements, of what is said outside of values, and of what is said in
ordinary talk."""


def asked_about(bank: Bank, is_of: Callable[[str], bool]) -> Tensor:
    """Which of the bank's places ask about a relation that is of a sort, told or never told, (n,)."""
    every = [*bank.facts, *bank.unknown]
    return marked(bank.targets, [fact for fact in every if is_of(fact.topic.relation)], "asked")


def asked_in_chat(bank: Bank) -> Tensor:
    """Those where things that were told stand in the window, (n,)."""
    every = [*bank.facts, *bank.unknown]
    return marked(bank.targets, [fact for fact in every if fact.seen and not fact.noted], "asked")


class AskedLater(Asking):
    """Places and openings that a later reader is for, and ordinary talk.

    Args:
        memory: of the adapter; it writes histories.
        bank: what its layers see.
        said: (n,) of the bank's places, true for those.
        values: sorts of them, each with the weights of what was told and never told, and (n,), true for those of it.
        begun: (n,) of its openings, the same.
        seed: of everything random.
    """

    def __init__(
        self,
        memory: DeltaMemory,
        bank: Bank,
        said: Tensor,
        values: Sequence[tuple[tuple[float, float], Tensor]],
        begun: Tensor,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, bank, seed)
        self._own, self._values, self._begun = said, list(values), begun.nonzero()[:, 0]

    def known(self) -> Known:
        """Hidden states of those places and openings."""
        bank, device = self._bank, self._before.device
        sorts = (bank.places, self._own.nonzero()[:, 0]), (bank.openings, self._begun)
        return Known.of_some(self._generator, device, *sorts)

    def loss_of(self, now: Stacked) -> Tensor:
        """Of one step: cross-entropy where replies begin, of what was told and of what never was, and in those to
        statements, and, in ordinary talk, the KL to the frozen backbone.
        """
        bank, facts = self._bank, self._rng.choice(_FACTS)
        rows = max(_FEWEST, _ROWS // facts)
        drawn = self._ours(self._drawing.histories(self._rng, facts, rows, _UNKNOWN, _PLACES))
        states = states_of(self._before, bank, drawn)
        begun = self._begun[some_of(len(self._begun), _OPENINGS, self._generator)]
        targets = bank.opening_targets[begun]
        among = self._among(torch.cat([targets, drawn.targets]))
        hidden = noisy(bank.openings[:, begun], self._spread, self._generator)
        any_row = self._any(rows, len(begun))
        found = self._said(now, hidden, bank.opening_residuals[begun], states, any_row, among)
        loss = _BEGUN * F.cross_entropy(found, among.numbers(targets))
        each, never = self._each(now, drawn, states), drawn.targets == bank.unsaid
        value = bank.values[drawn.places]
        loss = loss + _REST * _mean(each[~value])
        for (told, never_told), sort in self._values:
            own = value & sort[drawn.places]
            loss = loss + told * _mean(each[own & ~never]) + never_told * _mean(each[own & never])
        stated = self._drawing.statements(self._rng, self._rng.choice(_BEFORE), _STATEMENTS)
        loss = loss + _STATED * _mean(self._each(now, self._ours(stated)))
        return loss + _IN_IDLE * self._in_ordinary_talk(now, states, among) if bank.idle.shape[1] else loss

    def _ours(self, drawn: Drawn) -> Drawn:
        own = self._own[drawn.places]
        return replace(drawn, places=drawn.places[own], rows=drawn.rows[own], targets=drawn.targets[own])


def learn_to_ask(
    asking: AskedLater, layers: Sequence[DeltaLayer], steps: int, what: str, report: Report | None = None
) -> None:
    """Train W_q and the read gates of a later reader, in coordinates in which what it is for varies by the same.

    Args:
        asking: says what is wanted.
        layers: that reader's, alone (`later.alone`); they are changed.
        steps: of Adam.
        what: is being done, for `report`.
        report: called with that and the share done.
    """
    there = [name for name in _RATES if name != "read_gate_proj" or layers[0].config.read_gate]
    sparing = Sparing(layers, dict.fromkeys(there, asking.known()))
    rates = [_RATES[name] for name in sparing.steps]
    descend(list(sparing.steps.values()), lambda: asking.loss_of(sparing.stacked()), steps, what, report, rates=rates)
    sparing.keep()


def _mean(each: Tensor) -> Tensor:
    return each.sum() / max(1, len(each))
