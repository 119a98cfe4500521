"""Values, corrections and the base state trained on their own: what is to be said with what a place reads.

What a query reads is its own value by the cosine with its key, and others' by theirs. What those cosines are is known
when keys are fitted, so they are drawn: no history has to be written, and anything that was told can be asked for,
every word piece of the tokenizer among it. Where nothing is found that was told, it is to be said that it is not known;
outside of values a reply goes on as it would. A step takes a quarter of one on places, and what is learnt holds for
values that were in no bank, which steps on places take away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.evaluation.ordinary import divergence
from deltamem.memory import DeltaMemory
from deltamem.training.places.among import some_among
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers

T = TypeVar("T")

_FROM_BANK, _FROM_VOCABULARY = 100, 60
"""Told tokens that are asked for in a step, of the bank and of the vocabulary."""
_UNTOLD, _REST, _UNKNOWN, _OPENINGS, _IDLE = 80, 128, 32, 128, 48
"""Places in a step: that ask for what was not told, outside of values, in replies to what no episode told, where
replies begin, and in ordinary talk."""
_AFTER = 0.6
"""Share of those outside of values that come right after one."""
_WEIGHTS = {"told": 1.0, "untold": 0.7, "rest": 2.0, "unknown": 2.0, "openings": 4.0, "idle": 4.0}
_AMONG = 8000
"""Tokens each is told apart from in a step, at most, besides those said in it."""
_ALONG = (2, 4, 8, 16, 32)
"""Tokens read along with one, each as often: those of one fact to those of sixteen."""
_WRITTEN = 0.77
"""What write gates leave of a value."""
_LEAST = 0.08
_NEAR = 0.6
"""Share of what was not told where something like it was."""
_OWN_BY_LAYER = 0.7
"""How far a layer's own cosine is from the mean of all, beside how far others' are from none."""


class Cosine(NamedTuple):
    """Mean and standard deviation of what a query's cosine with a key is, on the mean over layers."""

    mean: float
    spread: float


class Reading(NamedTuple):
    """Cosines, as `places/keys.py` leaves them on held-out people.

    Attributes:
        own: with what is asked for.
        near: with something like what is asked for and was not told.
        again: right after a value, with its key.
        by_layer: standard deviation of a layer's cosines with all others.
    """

    own: Cosine = Cosine(0.36, 0.125)
    near: Cosine = Cosine(0.13, 0.09)
    again: Cosine = Cosine(0.16, 0.11)
    by_layer: float = 0.12


class _Places(NamedTuple):
    """Places in the order of their kinds, and what is read there.

    Attributes:
        hidden: (layers, R, hidden size).
        residuals: (R, hidden size).
        targets: (R - idle,).
        kinds: how many of each kind, in the order of `_WEIGHTS`.
        told: (layers, T, hidden size), what can be read.
        cosines: (layers, R, T).
    """

    hidden: Tensor
    residuals: Tensor
    targets: Tensor
    kinds: list[int]
    told: Tensor
    cosines: Tensor


class Saying:
    """Places, and told tokens that are or aren't read there.

    Args:
        memory: whose adapter is trained; its corrections go to the last layer.
        bank: what its layers see; of its words as well as of its facts something is told.
        reading: the cosines there are.
    """

    def __init__(self, memory: DeltaMemory, bank: Bank, reading: Reading | None = None) -> None:
        self._memory, self._bank, self._told, self._reading = memory, bank, bank.words, reading or Reading()
        self._tail = Tail(memory)
        self._spread_told = bank.told[:, :256].float().std(dim=(1, 2))[:, None, None]
        self._spread_asked = bank.places[:, :256].float().std(dim=(1, 2))[:, None, None]
        values = bank.values.tolist()
        every = [(place, fact) for fact in bank.facts for place in fact.asked]
        after = {place for fact in bank.facts for place in bank.after_value(fact)}
        self._asked = [place for place, _ in every if values[place]]
        apart = ((p, fact) for p, fact in every if not (fact.noted or fact.in_window))
        self._first = [p for p, fact in apart if values[p] and p not in after]
        self._rest = [(p, fact.told) for p, fact in every if not values[p]]
        self._after = [rest for rest in self._rest if rest[0] in after] or self._rest
        self._unknown = [place for fact in bank.unknown for place in fact.asked]

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Means over the places of each kind: of the cross-entropy, and in ordinary talk of the KL to the frozen
        backbone; `generator` decides which.
        """
        places = self._draw(generator)
        idle = places.kinds[-1]
        found = self._found(places)
        among = some_among(self._bank.candidates, places.targets, _AMONG, generator, found.device)
        logits = among.logits(self._tail, found)
        count = len(logits) - idle
        each = F.cross_entropy(logits[:count], among.numbers(places.targets), reduction="none")
        parts = dict(zip(_WEIGHTS, each.split(places.kinds[:-1]), strict=False))
        losses = {name: part.mean() for name, part in parts.items() if len(part)}
        if idle:
            with torch.no_grad():
                frozen = among.logits(self._tail, places.residuals[count:].to(found.device))
            losses["idle"] = divergence(logits[count:], frozen) / idle
        return losses

    @torch.no_grad()
    def right(self, generator: torch.Generator) -> float:
        """Share of the bank's told tokens that are said right among its candidates."""
        bank, right, size = self._bank, 0, _FROM_BANK
        for some in torch.randperm(bank.told.shape[1], generator=generator).split(size):
            where = _some(self._asked, len(some), generator)
            own = torch.diag(self._cosine(self._reading.own, len(some), generator).clamp_min(_LEAST))
            read = _Places(
                bank.places[:, where].float(),
                bank.residuals[where].float(),
                bank.told_ids[some],
                [len(some)],
                bank.told[:, some].float(),
                self._cosines(own, generator),
            )
            found = self._found(read)
            logits = self._tail(found, bank.candidates.to(found.device))
            right += int((bank.candidates[logits.argmax(-1).cpu()] == bank.told_ids[some]).sum())
        return right / bank.told.shape[1]

    def _draw(self, generator: torch.Generator) -> _Places:
        bank, reading = self._bank, self._reading
        some = torch.randint(bank.told.shape[1], (_FROM_BANK,), generator=generator)
        told, ids = [bank.told[:, some]], [bank.told_ids[some]]
        if self._told is not None:
            some = torch.randint(len(self._told.ids), (_FROM_VOCABULARY,), generator=generator)
            told, ids = [*told, self._told.hidden[:, some]], [*ids, self._told.ids[some]]
        targets = torch.cat(ids)
        asked = _some(self._asked, len(targets), generator)
        untold = _some(self._first, _UNTOLD, generator)
        after = round(_AFTER * _REST)
        rest = [*_some(self._after, after, generator), *_some(self._rest, _REST - after, generator)]
        unknown = _some(self._unknown, _UNKNOWN, generator)
        # Right after a value, its own is what is read again.
        again = [tokens[int(torch.randint(len(tokens), (), generator=generator))] for _, tokens in rest]
        places = torch.tensor([*asked, *untold, *(place for place, _ in rest), *unknown], dtype=torch.long)
        openings = some_of(bank.openings.shape[1], _OPENINGS, generator)
        idle = some_of(bank.idle.shape[1], _IDLE, generator)
        hidden = torch.cat([bank.places[:, places], bank.openings[:, openings], bank.idle[:, idle]], dim=1)
        can_be_read = torch.cat([*told, bank.told[:, again]], dim=1)
        own = torch.zeros(hidden.shape[1], can_be_read.shape[1])
        count, begin = len(targets), len(targets) + len(untold)
        row = torch.arange(count)
        own[row, row] = self._cosine(reading.own, count, generator).clamp_min(_LEAST)
        near = self._cosine(reading.near, len(untold), generator)
        near = near * (torch.rand(len(untold), generator=generator) < _NEAR)
        own[count + torch.arange(len(untold)), torch.randint(count, (len(untold),), generator=generator)] = near
        row = torch.arange(len(rest))
        own[begin + row, count + row] = self._cosine(reading.again, len(rest), generator)
        return _Places(
            noisy(hidden, self._spread_asked, generator),
            torch.cat([bank.residuals[places], bank.opening_residuals[openings], bank.idle_residuals[idle]]).float(),
            torch.cat(
                [
                    targets,
                    torch.full((len(untold),), bank.unsaid),
                    bank.targets[places[begin:]],
                    bank.opening_targets[openings],
                ]
            ),
            [count, len(untold), len(rest), len(unknown), len(openings), len(idle)],
            noisy(can_be_read, self._spread_told, generator),
            self._cosines(own, generator),
        )

    def _cosine(self, cosine: Cosine, count: int, generator: torch.Generator) -> Tensor:
        return cosine.mean + cosine.spread * torch.randn(count, generator=generator)

    def _cosines(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """(layers, R, T): those of `own` (R, T) that are not 0, by layer, and a few of others."""
        spread, layers = self._reading.by_layer, len(delta_layers(self._memory))
        along = torch.tensor(_ALONG)[torch.randint(len(_ALONG), (len(own), 1), generator=generator)]
        others = spread * (torch.rand(own.shape, generator=generator) < along / own.shape[1])
        noise = torch.randn(layers, *own.shape, generator=generator)
        return own + noise * torch.where(own != 0, _OWN_BY_LAYER * spread, others)

    def _found(self, places: _Places) -> Tensor:
        """Residuals (R, hidden size) with what is read at the places."""
        stacked, config = Stacked(delta_layers(self._memory)), self._memory.config
        device = stacked.device
        with torch.no_grad():
            # A query is as long as its read gate stands open.
            hidden = places.hidden.to(device)
            q = stacked.queries(hidden)
            opened = q.norm(dim=-1).mean(-1, keepdim=True)
        read = _WRITTEN * opened * (places.cosines.to(device) @ stacked.values(places.told.to(device)))
        reads = read.unflatten(-1, (config.num_state_heads, config.rank)).transpose(0, 1)
        if config.base_state:
            reads = reads + stacked.of_base_state(hidden, q)
        return places.residuals.to(device) + stacked.added(hidden, reads)


def _some(there: Sequence[T], count: int, generator: torch.Generator) -> list[T]:
    return [there[i] for i in some_of(len(there), count, generator).tolist()]


def fit_saying(memory: DeltaMemory, saying: Saying, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train W_v, D_o and the base state.

    Args:
        memory: whose adapter is changed.
        saying: of that memory.
        steps: of Adam; 900 of rank 64 in 26 layers take six minutes of two cores.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    weights = [w for layer in delta_layers(memory) for w in (layer.memory_v_proj, layer.delta_o_proj)]
    if memory.config.base_state:
        weights += [layer.base_state for layer in delta_layers(memory)]
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        parts = saying.losses(generator)
        return torch.stack([_WEIGHTS[name] * part for name, part in parts.items()]).sum()

    descend(weights, loss, steps, "learning to say what is read", report)
