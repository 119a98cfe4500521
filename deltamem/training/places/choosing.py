"""In what words replies begin, learnt as a choice among all ways that they can go on (`DeltaMemConfig.choices`).

What is chosen is what a reply says next and after that, up to a value. Ridge regression of all layers' hidden states
finds what tells these apart: of ways to ask that training never has it knows more than what is learnt step by step
(benchmarks/places.md). What is looked up by are the directions in which it tells most of places apart; the table is
then learnt step by step, beside all else that is said. A product that all layers add to knows most of it already, so it
is what another place reads plainly that stands beside what is learnt.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.begun import Beginning, Seen
from deltamem.training.places.descent import descend
from deltamem.training.places.ridge import regress, side_by_side
from deltamem.training.places.stacked import Stacked
from deltamem.training.warm_start import delta_layers

_LEAST = 3
"""Places that a way to go on needs."""
_WEAKLY = 0.3
"""Weight of places where none is chosen; of opened replies two thirds are such."""
_RIDGE = 1e-3
"""Added to the diagonal of what regression solves, relative to its mean."""
_SCALE, _PRIOR = 40.0, 0.6
"""Logits of what regression says, which is about 1 for what is chosen, and the share of how frequent each is that is
added: with none of it what is like nothing learnt is still taken for something."""
_NEVER = -30.0
"""Logit of entries that stand for nothing."""
_RATES = (2.0, 1.0, 80.0)
"""Of keys, biases and values, relative to other fits."""
_CHUNK, _SAMPLE = 4096, 16384


class Ways(NamedTuple):
    """Ways that replies go on.

    Attributes:
        which: (n,) of a bank's openings, the number of the way it goes on in; the number of ways for none of them.
        counts: (ways,), how many go on so.
    """

    which: Tensor
    counts: Tensor


def fit_choices(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Learn what to look entries up by, and the table.

    Args:
        memory: whose adapter is changed; it has choices.
        bank: what its layers see.
        steps: of Adam on the table; what is looked up by is solved for, which takes minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank has no openings of replies about what stands alone.
    """
    layers = delta_layers(memory)
    ways = ways_of(bank, len(layers) * memory.config.choices)
    choosing = Choosing(memory, bank, seed, report)
    keys, bias = choosing.begin(ways)
    values = torch.zeros(len(layers), bank.opening_residuals.shape[-1], memory.config.choices, device=keys.device)
    weights = [keys.requires_grad_(), bias.requires_grad_(), values.requires_grad_()]
    names = ("choice_keys", "choice_bias", "choice_values")

    def loss() -> Tensor:
        return choosing.loss_of(Stacked(layers, dict(zip(names, weights, strict=True))))

    descend(weights, loss, steps, "learning to choose how replies begin", report, rates=_RATES)
    with torch.no_grad():
        for name, learnt in zip(names, weights, strict=True):
            for layer, own in zip(layers, learnt, strict=True):
                getattr(layer, name).copy_(own)


def ways_of(bank: Bank, most: int) -> Ways:
    """In what ways a bank's openings go on, at most so many, the most frequent ones.

    Raises:
        DataError: in none.
    """
    said: list[tuple[int, ...]] = [()] * len(bank.opening_targets)
    targets, starts, alone = (t.tolist() for t in (bank.opening_targets, bank.opening_starts, bank.opening_alone))
    for n in reversed(range(len(said))):
        rest = said[n + 1] if n + 1 < len(said) and not starts[n + 1] else ()
        said[n] = (targets[n], *rest)
    counts = Counter(way for way, counted in zip(said, alone, strict=True) if counted)
    kept = [way for way, count in counts.most_common(most) if count >= _LEAST]
    if not kept:
        raise DataError("what replies begin with is chosen of a bank that has openings of replies")
    numbers = {way: n for n, way in enumerate(kept)}
    which = [numbers.get(way, len(kept)) if counted else len(kept) for way, counted in zip(said, alone, strict=True)]
    return Ways(torch.tensor(which), torch.tensor([counts[way] for way in kept]))


class Choosing(Beginning):
    """Openings of replies beside what others read plainly, and places that are to stay as they are."""

    def __init__(self, memory: DeltaMemory, bank: Bank, seed: int = 0, report: Report | None = None) -> None:
        super().__init__(memory, bank, seed, report, without=("choice_values",))
        with torch.no_grad():
            parts = bank.openings.split(_CHUNK, dim=1)
            wide = (x.to(self._without.device).float() for x in parts)
            self._plain = torch.cat([self._without.corrections(self._without.plainly(x)) for x in wide])

    def begin(self, ways: Ways) -> tuple[Tensor, Tensor]:
        """Set what entries are looked up by, and give the keys (layers, choices, k) and biases (layers, choices) to
        begin with.
        """
        config, layers = self._layers[0].config, len(self._layers)
        bank, device = self._bank, self.spread.device
        parts, count = (bank.openings, bank.places[:, bank.values.to(bank.places.device)]), len(ways.counts)
        which = torch.cat([ways.which, torch.full((parts[1].shape[1],), count)])

        def seen(numbers: Tensor) -> Tensor:
            return side_by_side(parts, numbers, self.spread)

        def wanted(numbers: Tensor) -> Tensor:
            return F.one_hot(which[numbers], count + 1)[:, :count].to(self.spread)

        counts = torch.where(which < count, 1.0, _WEAKLY)
        found = regress(seen, wanted, counts, _RIDGE, self._generator, "reading how replies go on", self._report)
        sample = torch.randperm(len(which), generator=self._generator)[:_SAMPLE].split(_CHUNK)
        said = torch.cat([(seen(numbers.sort().values) - found.seen) @ found.weights for numbers in sample])
        rank = min(config.choice_rank, count)
        # The directions in which what it says of places differs most.
        best = torch.linalg.eigh(said.T @ said).eigenvectors.flip(1)[:, :rank]
        by = found.weights @ best
        # What is left over says that none is: taken from each, so that none has a logit of 0.
        prior = found.wanted - (1 - found.wanted.sum())
        keys = torch.zeros(layers * config.choices, config.choice_rank, device=device)
        keys[:count, :rank] = _SCALE * (best + best.sum(0))
        bias = torch.full((layers * config.choices,), _NEVER, device=device)
        bias[:count] = _SCALE * _PRIOR * prior - keys[:count, :rank] @ (found.seen @ by)
        with torch.no_grad():
            for layer, own, spread in zip(self._layers, by.unflatten(0, (layers, -1)), self.spread, strict=True):
                layer.choice_proj.zero_()[:rank] = own.T / spread
        return keys.unflatten(0, (layers, -1)), bias.unflatten(0, (layers, -1))

    def _adds(self, now: Stacked, x: Tensor) -> Tensor:
        return now.chosen(x)

    def _residuals(self, seen: Seen, some: Tensor) -> Tensor:
        """Those of openings with what another one reads plainly in place of its own."""
        residuals = super()._residuals(seen, some)
        if seen is not self._openings:
            return residuals
        mine = self._plain[some]
        others = self._plain[self._any(len(self._plain), len(some))]
        return residuals + (others - mine) * seen.heard[some, None]
