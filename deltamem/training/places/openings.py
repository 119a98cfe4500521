"""How replies begin, trained on its own after everything else: read gates and the base state.

What a reply begins with hangs on the question alone, and there are more ways to ask than any bank holds. So those two
learn it from as many as there are, and what they read of what was told stays what it was: at places of histories the
distribution of what is said next is held to the one before. Nothing else is touched, so a state means what it meant.
Read gates are shut in ordinary talk in the same steps. With queries among what is trained more replies begin right, and
values that were in no bank are found less often (benchmarks/places.md).
"""

from __future__ import annotations

import copy
import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.by_row import ByRow
from deltamem.training.places.descent import descend, noisy
from deltamem.training.places.draw import Drawing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers

_FACTS = (1, 2, 4, 8, 16)
_DRAWS, _ROWS = 4, 24
"""Batches of histories of each number of facts, and histories in one."""
_UNKNOWN = 0.5
"""Chance, per fact told, that something never told is asked for."""
_EMPTY = 0.3
"""Share of openings that are read with nothing told."""
_OPENINGS, _PLACES, _IDLE = 384, 384, 256
"""In a step."""
_KEPT, _QUIET = 2.0, 4.0
"""Weights: of what is said of what was told, and of read gates in ordinary talk."""
_MARGIN = 0.5
"""Logits that a gate which is to be shut is to be below its floor."""
_RATES = {"read_gate_proj": 3.0, "read_gate_bias": 3.0, "base_state": 4.0}
"""Of what is trained, relative to other fits."""
_CLIP = 5.0


def fit_openings(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the read gates and the base state at the openings of replies.

    Args:
        memory: whose adapter is changed, if it has read gates or a base state; its corrections go to the last layer.
        bank: what its layers see.
        steps: of Adam; 400 of rank 64 in 26 layers take five minutes of one core.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    if not _trained(memory):
        return
    openings = Openings(memory, bank, seed)
    trained = {name: [getattr(layer, name) for layer in delta_layers(memory)] for name in _trained(memory)}
    weights = [w for some in trained.values() for w in some]
    rates = [_RATES[name] for name, some in trained.items() for _ in some]
    descend(weights, openings.loss, steps, "learning how replies begin", report, _CLIP, rates)


def _trained(memory: DeltaMemory) -> list[str]:
    gates = [name for name in _RATES if name.startswith("read_gate") and memory.config.read_gate]
    return [*gates, "base_state"] if memory.config.base_state else gates


class Openings:
    """Openings of replies, places of histories to be left as they are, and ordinary talk.

    Args:
        memory: of an adapter; it is held to what that says when this is made.
        bank: what its layers see.
        seed: of everything random.
    """

    def __init__(self, memory: DeltaMemory, bank: Bank, seed: int = 0) -> None:
        self._memory, self._bank, self._tail = memory, bank, Tail(memory)
        self._generator = torch.Generator().manual_seed(seed)
        self._before = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in delta_layers(memory)])
        self._spread = bank.places[:, :256].float().std(dim=(1, 2))[:, None, None]
        self._candidates = bank.candidates
        drawing, rng = Drawing(bank), random.Random(seed)
        self._histories = [
            (drawn, self._states(drawn.told, drawn.valid))
            for facts in _FACTS
            for _ in range(_DRAWS)
            for drawn in [drawing.histories(rng, facts, _ROWS, _UNKNOWN, 10**6)]
        ]
        floor = memory.config.read_gate_floor
        self._shut = math.log(floor / (1 - floor)) - _MARGIN if floor else 0.0

    @torch.no_grad()
    def _states(self, told: Tensor, valid: Tensor) -> Tensor:
        def of(hidden: Tensor) -> Tensor:
            found: Tensor = hidden[:, told.flatten()].unflatten(1, told.shape)
            return found.to(self._device).float()

        own = of(self._bank.told)
        before = of(self._bank.before) if self._memory.config.keys == "pair" else None
        return self._before.written(own, before, own, valid.to(self._device))[0]

    @property
    def _device(self) -> torch.device:
        device: torch.device = delta_layers(self._memory)[0].memory_q_proj.device
        return device

    def loss(self) -> Tensor:
        """Of one step: cross-entropy where replies begin, the KL to what was said before of what was told, and how far
        read gates are from being shut in ordinary talk.
        """
        bank, now = self._bank, Stacked(delta_layers(self._memory))
        drawn, states = self._histories[int(self._any(len(self._histories), 1))]
        some = self._any(bank.openings.shape[1], _OPENINGS)
        rows = self._any(states.shape[1], _OPENINGS)
        told = (torch.rand(states.shape[1], generator=self._generator) >= _EMPTY).to(states)
        hidden = noisy(bank.openings[:, some], self._spread, self._generator)
        begun = self._said(now, hidden, bank.opening_residuals[some], states * told[:, None, None, None], rows)
        targets = torch.searchsorted(self._candidates, bank.opening_targets[some])
        loss = F.cross_entropy(begun, targets.to(begun.device))
        some = self._any(len(drawn.places), _PLACES)
        places, rows = drawn.places[some], drawn.rows[some]
        hidden = noisy(bank.places[:, places], self._spread, self._generator)
        found = self._said(now, hidden, bank.residuals[places], states, rows)
        with torch.no_grad():
            was = self._said(self._before, hidden, bank.residuals[places], states, rows)
        loss = loss + _KEPT * F.kl_div(
            found.log_softmax(-1), was.log_softmax(-1), reduction="batchmean", log_target=True
        )
        if self._memory.config.read_gate and bank.idle.shape[1]:
            idle = bank.idle[:, self._any(bank.idle.shape[1], _IDLE)].to(self._device).float()
            loss = loss + _QUIET * F.softplus(torch.logit(now.read_gates(idle), eps=1e-6) - self._shut).mean()
        return loss

    def _any(self, there: int, count: int) -> Tensor:
        return torch.randint(there, (count,), generator=self._generator)

    def _said(self, stacked: Stacked, hidden: Tensor, residuals: Tensor, states: Tensor, rows: Tensor) -> Tensor:
        """Logits of the candidates, (P, candidates), at places (layers, P, hidden size) of the states of `rows`."""
        reads = stacked.reads(hidden.to(self._device), states, ByRow(rows.to(self._device), states.shape[1]))
        bent = residuals.to(self._device).float() + stacked.corrections(reads)
        return self._tail(bent, self._candidates.to(self._device)).float()
