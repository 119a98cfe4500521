"""What is erased, trained on its own: of what a key finds, how much is taken out as its value is written.

The delta rule takes out all: what is told anew takes the place of what was told before. So does what is told of
something whose key is alike, and what was told first is lost: of a mother's name and a father's the later one is said
for both. Whether something is told as a correction shows where it is told, so a gate of the token's can tell. Nothing
else is touched: what a key, a value and a query are stays as it was.
"""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.memory import DeltaMemory
from deltamem.training.places.among import some_among
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend, noisy
from deltamem.training.places.draw import Drawing
from deltamem.training.places.nearness import nearest
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers

_FACTS = (1, 2, 2, 4, 8, 16, 32)
_ROWS = 24
"""Histories in a step, all of as many facts."""
_UNKNOWN = 0.5
"""Chance, per fact told, that something never told is asked for."""
_PLACES = 384
"""In a step."""
_AMONG = 4096
"""Tokens that what is to be said is told apart from in a step, at most, besides those said in it."""
_SPREAD = 256
"""Hidden states whose spread noise goes by."""


def fit_erasing(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the gates of what is erased, and nothing else.

    Args:
        memory: whose adapter is changed; it has `learned_erase`, and corrections that go to the last layer.
        bank: what its layers see.
        steps: of Adam; 120 of rank 64 in 26 layers take a minute and a half of one core.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    erasing = Erasing(memory, bank, seed)
    descend(erasing.weights, erasing.loss, steps, "learning what to erase", report)


class Erasing:
    """What is said of histories, by what is erased as they are written.

    Attributes:
        weights: what is trained.
    """

    def __init__(self, memory: DeltaMemory, bank: Bank, seed: int = 0) -> None:
        self._layers = delta_layers(memory)
        self.weights: list[Tensor] = [w for layer in self._layers for w in (layer.erase_proj, layer.erase_bias)]
        self._frozen = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in self._layers])
        self._bank, self._tail, self._drawing = bank, Tail(memory), Drawing(bank, nearest(bank))
        self._generator, self._rng = torch.Generator().manual_seed(seed), random.Random(f"erasing-{seed}")
        self._spread = bank.told[:, :_SPREAD].float().std(dim=(1, 2))[:, None, None].to(self._frozen.device)

    def loss(self) -> Tensor:
        """Cross-entropy of what is to be said, in one step."""
        bank, frozen = self._bank, self._frozen
        drawn = self._drawing.histories(self._rng, self._rng.choice(_FACTS), _ROWS, _UNKNOWN, _PLACES)
        numbers = drawn.told.flatten()
        told = self._seen(bank.told[:, numbers])
        before = self._seen(bank.before[:, numbers]) if frozen.config.keys == "pair" else None
        products = frozen.told_products(told, before, self._seen(bank.said(drawn.said.flatten())))
        proj, bias = (
            torch.stack([getattr(layer, name) for layer in self._layers]) for name in ("erase_proj", "erase_bias")
        )
        erased = torch.bmm(told, proj.mT) + bias[:, None]
        products = torch.cat([products[..., : -erased.shape[-1]], erased], dim=-1).unflatten(1, drawn.told.shape)
        states = frozen.left_by(products, drawn.valid.to(frozen.device))
        among = some_among(bank.candidates, drawn.targets, _AMONG, self._generator, frozen.device)
        asked = self._seen(bank.places[:, drawn.places])
        bent = frozen.bent(asked, bank.residuals[drawn.places], states, drawn.rows)
        return F.cross_entropy(among.logits(self._tail, bent), among.numbers(drawn.targets))

    def _seen(self, hidden: Tensor) -> Tensor:
        return noisy(hidden.to(self._frozen.device), self._spread, self._generator)
