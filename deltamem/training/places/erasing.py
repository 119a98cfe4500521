"""What is erased, in closed form: of what a key finds, how much is taken out as its value is written.

The delta rule takes out all: what is told anew takes the place of what was told before. So does what is told of
something whose key is alike, and what was told first is lost: of a mother's name and a father's the later one is said
for both. Whether something is told as a correction shows in the hidden states of its value, so a gate of the token's
can tell: it is the ridge regression on them that tells values of corrections from others. Nothing else is touched:
what a key, a value and a query are stays as it was.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank
from deltamem.training.warm_start import delta_layers

_LEFT, _TAKEN = 0.3, 1.5
"""Erase gates that are wanted, 0 to 2, at the mean logit of values of what is told, and of corrections."""
_RIDGE = 0.26
"""Added to variances of 1."""


@torch.no_grad()
def fit_erasing(memory: DeltaMemory, bank: Bank) -> None:
    """Set the erase gates.

    Args:
        memory: whose adapter is changed; it has `learned_erase`.
        bank: what its layers see; a few hundred corrections are enough.

    Raises:
        DataError: nothing in the bank corrects anything, or everything does.
    """
    told = [fact for fact in bank.facts if fact.told and not fact.noted]
    corrections, others = ([t for f in told if f.corrects == corrects for t in f.told] for corrects in (True, False))
    if not corrections or not others:
        raise DataError("what is erased is fitted on corrections and on what is none; take a larger --bank")
    corrects = torch.tensor([True] * len(corrections) + [False] * len(others))
    for i, layer in enumerate(delta_layers(memory)):
        hidden = bank.told[i][corrections + others].cpu().float()
        direction, bias = _telling_apart(hidden, corrects)
        layer.erase_proj.copy_(direction.expand_as(layer.erase_proj))
        layer.erase_bias.fill_(bias)


def _telling_apart(x: Tensor, which: Tensor) -> tuple[Tensor, float]:
    """Weights (hidden size,) and bias of a gate's logit, from x (n, hidden size) and which of them (n,) it is to erase
    for; both sorts count for as much.
    """
    mean, spread = x.mean(0), x.std(0) + 1e-3
    z = (x - mean) / spread
    weight = torch.where(which, 0.5 / which.sum(), 0.5 / (~which).sum())[:, None]
    moments = (weight * z).T @ z + _RIDGE * torch.eye(x.shape[1])
    found = torch.linalg.solve(moments, (weight * z).T @ torch.where(which, 1.0, -1.0))
    score = z @ found
    taken, left = float(score[which].mean()), float(score[~which].mean())
    slope = (_logit(_TAKEN) - _logit(_LEFT)) / (taken - left)
    direction = slope * found / spread
    return direction, _logit(_LEFT) - slope * left - float(direction @ mean)


def _logit(gate: float) -> float:
    """Of a gate of 0 to 2."""
    return math.log(gate / (2 - gate))
