"""What is asked in the chat in which it was told, and what is told of people close to one, learnt by the second reader
beside numbers.

A query made where all that was told stands in the window is another one than where a question comes alone: what was
told there is in it, and where something was never told it finds that instead. A reader that learnt questions by
themselves says the name of one's dog for that of one's neighbour, which the backbone does as well, as it likes to say
what it has just read. And a reader that learnt what one does oneself takes a sister's town for one's own ("You live in
Oslo."). The first reader stays as it was, and other questions by themselves with it (benchmarks/places.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.numbers import is_number
from deltamem.episodes.relation_data import is_of_relatives
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report, marked
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.draw import Drawn
from deltamem.training.places.reading import Asking
from deltamem.training.places.second import as_second, fit_route, put_back
from deltamem.training.places.sparing import Known, Sparing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.states import states_of
from deltamem.training.warm_start import delta_layers

_RATES = {"memory_q_proj": 1.0, "read_gate_proj": 3.0}
_FACTS = (1, 1, 2, 3, 4, 8)
"""How many are told in a history, each as often as it stands here."""
_ROWS, _FEWEST = 48, 12
"""Histories of one fact in a step, and fewest of many."""
_BEFORE, _STATEMENTS = (0, 0, 1, 4, 8), 12
"""Facts told before a statement whose reply is looked at, and statements in a step."""
_UNKNOWN = 0.8
"""Chance, per fact told, that something never told is asked for."""
_PLACES, _OPENINGS = 512, 256
"""In a step, of which those that the second reader is for are looked at."""
_BEGUN, _STATED, _REST, _IN_IDLE = 1.5, 1.0, 0.4, 0.25
"""Weights: of how replies begin, of replies to statements, of what is said outside of values, and of what is said in
ordinary talk."""
_NUMBERS, _RELATIVES, _IN_CHAT = (2.5, 0.4), (1.5, 0.6), (1.5, 0.4)
"""Weights of values told and never told: of numbers and of people close to one, where the question comes alone, and of
all in a chat. What was told there is copied from the window anyway, so that most of what is left to learn there is to
say that something was never told: weighing alike, the reader said so of most numbers asked for alone
(benchmarks/places.md).
"""


def fit_chats(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the second reader's W_q and read gates, and then the route.

    Args:
        memory: whose adapter is changed; it has a second reader.
        bank: what its layers see.
        steps: of Adam; 480 for rank 64 in 26 layers take six minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank asks nothing in the chat in which it was told, or nothing else.
    """
    layers = delta_layers(memory)
    every = [*bank.facts, *bank.unknown]
    in_chat = marked(bank.targets, [fact for fact in every if fact.seen and not fact.noted], "asked")
    numbers, close = (
        marked(bank.targets, [fact for fact in every if is_of(fact.topic.relation)], "asked")
        for is_of in (is_number, is_of_relatives)
    )
    said = in_chat | numbers | close
    # Words in which other questions are put are many, and the first reader knows them; so replies begin as it says.
    begun = bank.opening_numbers | bank.opening_relatives
    if not in_chat.any() or said.all() or not begun.any() or begun.all():
        raise DataError("what is asked in the chat in which it was told is learnt beside other questions; give --bank")
    readers = as_second(layers)
    sorts_of_values = (
        (_NUMBERS, numbers & ~close & ~in_chat),
        (_RELATIVES, close & ~in_chat),
        (_IN_CHAT, in_chat),
    )
    asking = _InChats(memory, bank, said, sorts_of_values, begun, seed)
    sorts = ((bank.places, said.nonzero()[:, 0]), (bank.openings, begun.nonzero()[:, 0]))
    known = Known.of_some(torch.Generator().manual_seed(seed), layers[0].memory_q_proj.device, *sorts)
    there = [name for name in _RATES if name != "read_gate_proj" or memory.config.read_gate]
    sparing = Sparing(readers, dict.fromkeys(there, known))
    rates = [_RATES[name] for name in sparing.steps]
    descend(
        list(sparing.steps.values()),
        lambda: asking.loss_of(sparing.stacked()),
        steps,
        "learning to read in a chat",
        report,
        rates=rates,
    )
    sparing.keep()
    put_back(layers, readers)
    fit_route(layers, bank, said, begun, seed, report)


class _InChats(Asking):
    """Places and openings that the second reader is for, and ordinary talk.

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


def _mean(each: Tensor) -> Tensor:
    return each.sum() / max(1, len(each))
