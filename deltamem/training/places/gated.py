"""How far gates are from what is wanted of them at some of a bank's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.training.places.descent import noisy, some_of
from deltamem.training.places.stacked import Stacked

Gates = Callable[[Stacked, Tensor], Tensor]
"""How far gates of layers stand open at hidden states (layers, n, hidden size)."""

_SPREAD = 256


class Wanted(NamedTuple):
    """What is wanted of gates at some hidden states of a sort.

    Attributes:
        hidden: (layers, n, hidden size), all of the sort.
        numbers: which of them these are.
        at_once: how many of these a step looks at.
        weight: of these.
        wanted: how far gates are to be open, from how far they were.
    """

    hidden: Tensor
    numbers: Tensor
    at_once: int
    weight: float
    wanted: Callable[[Tensor], Tensor]

    def draw(self, generator: torch.Generator) -> Tensor:
        """(layers, at_once, hidden size), any of these."""
        return self.hidden[:, self.numbers[some_of(len(self.numbers), self.at_once, generator)]]


def as_it_was(gates: Tensor) -> Tensor:
    """What is wanted where nothing is to change."""
    return gates


def numbered(some: Collection[int]) -> Tensor:
    """Numbers as `Wanted` has them."""
    return torch.tensor(sorted(some), dtype=torch.long)


def there(*every: Wanted) -> list[Wanted]:
    """Those of which there are any."""
    return [one for one in every if len(one.numbers)]


def spread(hidden: Tensor) -> Tensor:
    """How much hidden states (layers, n, hidden size) vary by layer, (layers, 1, 1), for `noisy`."""
    return hidden[:, :_SPREAD].float().std(dim=(1, 2))[:, None, None]


def far_off(gates: Gates, now: Stacked, before: Stacked, every: Sequence[Wanted], generator: torch.Generator) -> Tensor:
    """The weighted sum of cross-entropies, each the mean over some of its hidden states, with noise on them."""
    device = before.device
    loss = torch.zeros((), device=device)
    for one in every:
        hidden = one.draw(generator).to(device).float()
        with torch.no_grad():
            wanted = one.wanted(gates(before, hidden))
        found = gates(now, noisy(hidden, spread(one.hidden).to(device), generator))
        loss = loss + one.weight * F.binary_cross_entropy(found.clamp(1e-6, 1 - 1e-6), wanted)
    return loss
