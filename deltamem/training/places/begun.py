"""In what words replies begin, learnt as a plain product of all that layers see (`DeltaMemConfig.plain_read`).

What a reply begins with hangs on the question alone, so it has to be known from the hidden states of a token. All
layers together know it from fewer ways to ask than queries do, which have length 1 and are also to find keys
(benchmarks/places.md). Nothing else is changed, so what readers add is worked out once for all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.errors import DataError
from deltamem.evaluation.ordinary import divergence
from deltamem.memory import DeltaMemory
from deltamem.training.places.among import Among
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.draw import Drawn
from deltamem.training.places.reading import Asking
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.states import states_of
from deltamem.training.warm_start import delta_layers

_OPENINGS, _PLACES, _IDLE = 1024, 384, 256
"""In a step."""
_SORTS = (0.45, 0.3, 0.25)
"""Shares of openings about words, numbers and people close to one, where there are such."""
_DRAWS, _STATEMENTS_DRAWN = 10, 12
"""Sets of histories and of statements whose places are looked at."""
_FACTS, _ROWS, _LOOKED_AT, _UNKNOWN = (1, 1, 2, 4, 8), 32, 600, 0.8
"""Facts in each, histories in a set, places of it, and the chance, per fact, that something never told is asked for."""
_BEFORE, _STATEMENTS = (0, 1, 4, 8), 48
"""Facts told before a statement, and statements in a set."""
_EMPTY = 0.1
"""Share of openings that are read with nothing told."""
_IDLE_SEEN = 16384
"""Places of ordinary talk that are looked at, at most."""
_CHUNK = 384
"""Hidden states that are worked on at a time, so many with the same few histories."""
_KEPT, _ALONE = 1.0, 1.0
"""Weights of what was said of histories and of what is said in ordinary talk."""
_DECAY = 4e-3
"""Of squared weights, for hidden states of unit variance."""
_NOISIER = 1.5
"""Times the noise of other fits: with it and that much decay ways to ask that training never has lose least."""
_SAMPLE = 4096
"""Hidden states that variance is measured of."""


class Seen(NamedTuple):
    """Places, with what readers add there.

    Attributes:
        hidden: (layers, n, hidden size), of all there are.
        numbers: (n,), of those that are looked at.
        residuals: (n, hidden size), of these, with what was read.
        heard: (n,), how far readers are heard there.
    """

    hidden: Tensor
    numbers: Tensor
    residuals: Tensor
    heard: Tensor


def fit_beginnings(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train what is read plainly.

    Args:
        memory: whose adapter is changed; it has a plain read.
        bank: what its layers see.
        steps: of Adam; 400 of rank 64 in 26 layers take five minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank has no openings of replies.
    """
    if not bank.openings.shape[1]:
        raise DataError("how replies begin is learnt of a bank that has openings of replies")
    beginning = Beginning(memory, bank, seed, report)
    was = torch.stack([layer.plain_read_proj.detach() for layer in delta_layers(memory)])
    moved = torch.zeros_like(was, requires_grad=True)

    def loss() -> Tensor:
        now = Stacked(delta_layers(memory), {"plain_read_proj": was + moved / beginning.spread})
        return beginning.loss_of(now) + _DECAY * moved.square().sum()

    descend([moved], loss, steps, "learning how replies begin", report)
    with torch.no_grad():
        for layer, own in zip(delta_layers(memory), was + moved / beginning.spread, strict=True):
            layer.plain_read_proj.copy_(own)


class Beginning(Asking):
    """Openings of replies, and places that are to stay as they are.

    Args:
        memory: of an adapter; it is held to what that says of histories when this is made.
        bank: what its layers see.
        seed: of everything random.
        report: called with what is being done and the share done.
        without: names of tensors without which what is added besides is worked out.

    Attributes:
        spread: (layers, 1, hidden size), of what openings see.
    """

    def __init__(
        self,
        memory: DeltaMemory,
        bank: Bank,
        seed: int = 0,
        report: Report | None = None,
        without: Sequence[str] = ("plain_read_proj",),
    ) -> None:
        super().__init__(memory, bank, seed)
        self._layers, self._report = delta_layers(memory), report
        zeros = {n: torch.stack([torch.zeros_like(getattr(layer, n)) for layer in self._layers]) for n in without}
        self._without = Stacked(self._layers, zeros)
        some = some_of(bank.openings.shape[1], _SAMPLE, self._generator)
        self.spread = bank.openings[:, some].float().std(1, keepdim=True).clamp_min(1e-3)
        words = ~bank.opening_numbers & ~bank.opening_relatives
        sorts = [mark.nonzero()[:, 0] for mark in (words, bank.opening_numbers, bank.opening_relatives)]
        self._sorts = [(round(share * _OPENINGS), of) for share, of in zip(_SORTS, sorts, strict=True) if len(of)]
        with torch.no_grad():
            self._places, states = self._histories()
            every = torch.arange(bank.openings.shape[1])
            self._openings = self._looked_at(bank.openings, bank.opening_residuals, every, states)
            idle = some_of(bank.idle.shape[1], min(_IDLE_SEEN, bank.idle.shape[1]), self._generator)
            begins = self._idle_begins[: len(idle)]
            idle = torch.cat([idle[len(begins) :], begins])
            self._idle = self._looked_at(bank.idle, bank.idle_residuals, idle, states)

    def loss_of(self, now: Stacked) -> Tensor:
        """Of one step: cross-entropy of how replies begin, the KL to what was said of histories and, in ordinary talk,
        to the frozen backbone.

        Args:
            now: the layers as they are in this step.
        """
        bank = self._bank
        some = torch.cat([of[some_of(len(of), count, self._generator)] for count, of in self._sorts])
        places = some_of(len(self._places.numbers), _PLACES, self._generator)
        targets = bank.opening_targets[some]
        among = self._among(torch.cat([targets, bank.targets[self._places.numbers[places]]]))
        loss = F.cross_entropy(self._said_there(now, self._openings, some, among), among.numbers(targets))
        found = self._said_there(now, self._places, places, among)
        with torch.no_grad():
            said = self._said_there(self._before, self._places, places, among, noise=False)
        loss = loss + _KEPT * divergence(found, said) / len(places)
        if not len(self._idle.numbers):
            return loss
        idle = some_of(len(self._idle.numbers), _IDLE, self._generator)
        with torch.no_grad():
            residuals = bank.idle_residuals[self._idle.numbers[idle]].to(now.device).float()
            frozen = among.logits(self._tail, residuals)
        return loss + _ALONE * divergence(self._said_there(now, self._idle, idle, among), frozen) / len(idle)

    def _said_there(self, now: Stacked, seen: Seen, some: Tensor, among: Among, noise: bool = True) -> Tensor:
        """Logits `among` tokens at some of the places, (n, tokens)."""
        x = seen.hidden[:, seen.numbers[some]].to(now.device).float()
        if noise:
            x = noisy(x, _NOISIER * self.spread, self._generator)
        return among.logits(self._tail, self._residuals(seen, some) + self._adds(now, x) * seen.heard[some, None])

    def _adds(self, now: Stacked, x: Tensor) -> Tensor:
        """What is learnt, at places x, where it is heard in full, (n, hidden size)."""
        return now.corrections(now.plainly(x))

    def _residuals(self, seen: Seen, some: Tensor) -> Tensor:
        """Of some of the places, with all else that is added."""
        return seen.residuals[some]

    def _histories(self) -> tuple[Seen, Tensor]:
        """Places of histories and of replies to statements, and states that histories left, (layers, B, H, r, r)."""
        bank, kept, left = self._bank, [], []
        for n in range(_DRAWS):
            drawn = self._drawing.histories(self._rng, _FACTS[n % len(_FACTS)], _ROWS, _UNKNOWN, _LOOKED_AT)
            left.append(states_of(self._before, bank, drawn))
            kept.append(self._at(drawn, left[-1]))
        for n in range(_STATEMENTS_DRAWN):
            drawn = self._drawing.statements(self._rng, _BEFORE[n % len(_BEFORE)], _STATEMENTS)
            if len(drawn.places):
                kept.append(self._at(drawn, states_of(self._before, bank, drawn)))
        numbers, residuals, heard = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return Seen(bank.places, numbers, residuals, heard), torch.cat(left, dim=1)

    def _at(self, drawn: Drawn, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self._bank.places[:, drawn.places], self._bank.residuals[drawn.places]
        return drawn.places, *self._read_there(*seen, states, drawn.rows)

    def _looked_at(self, hidden: Tensor, residuals: Tensor, numbers: Tensor, states: Tensor) -> Seen:
        """Those places, each with the state that one of the histories left, or with nothing told."""
        parts = []
        for at in numbers.split(_CHUNK):
            histories = self._any(states.shape[1], 8)
            told = (torch.rand(8, generator=self._generator) >= _EMPTY).to(states)
            some = states[:, histories.to(states.device)] * told[:, None, None, None]
            parts.append(self._read_there(hidden[:, at], residuals[at], some, self._any(8, len(at))))
            if self._report is not None:
                self._report("reading where replies begin", len(parts) * _CHUNK / max(1, len(numbers)))
        empty = torch.zeros(0, residuals.shape[-1], device=states.device)
        read = torch.cat([empty, *(part[0] for part in parts)]), torch.cat([empty[:, 0], *(part[1] for part in parts)])
        return Seen(hidden, numbers, *read)

    def _read_there(self, hidden: Tensor, residuals: Tensor, states: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        heard = self._without.shares(hidden.to(self._without.device).float())[:, -1]
        return self._without.bent(hidden, residuals, states, rows), heard
