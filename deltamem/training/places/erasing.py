"""What is erased, trained on its own: of what a key finds, how much is taken out as its value is written.

The delta rule takes out all: what is told anew takes the place of what was told before. So does what is told of
something whose key is alike, and what was told first is lost. How alike keys of two nouns are, and those of one noun
told twice, differs from layer to layer, and one number in each is all there is to learn: what a value, a key and a
query are stays as it was.
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
from deltamem.training.places.descent import descend
from deltamem.training.places.draw import Drawing
from deltamem.training.places.nearness import nearest
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.states import products_of
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
_RATE = 10.0
"""Relative to other fits."""


def fit_erasing(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train what is erased, and nothing else.

    Args:
        memory: whose adapter is changed; it has `learned_erase`, and corrections that go to the last layer.
        bank: what its layers see.
        steps: of Adam; 200 of rank 64 in 26 layers take three minutes of one core.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    layers, tail = delta_layers(memory), Tail(memory)
    frozen = Stacked([copy.deepcopy(layer).requires_grad_(False) for layer in layers])
    shares: list[Tensor] = [layer.erase_share for layer in layers]
    drawing = Drawing(bank, nearest(bank))
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"erasing-{seed}")

    def loss() -> Tensor:
        drawn = drawing.histories(rng, rng.choice(_FACTS), _ROWS, _UNKNOWN, _PLACES)
        products = products_of(frozen, bank, drawn)
        erased = torch.stack(shares)[:, None, None].expand(*products.shape[:-1], -1)
        products = torch.cat([products[..., : -erased.shape[-1]], erased], dim=-1)
        states = frozen.left_by(products, drawn.valid.to(frozen.device))
        among = some_among(bank.candidates, drawn.targets, _AMONG, generator, frozen.device)
        bent = frozen.bent(bank.places[:, drawn.places], bank.residuals[drawn.places], states, drawn.rows)
        return F.cross_entropy(among.logits(tail, bent), among.numbers(drawn.targets))

    descend(shares, loss, steps, "learning what to erase", report, rates=[_RATE] * len(shares))
