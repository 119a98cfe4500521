"""What is erased, in closed form: of what a key finds, how much is taken out as its value is written.

The delta rule takes out all: what is told anew takes the place of what was told before. So does what is told of
something whose key is alike, and what was told first is lost: of a mother's name and a father's the later one is said
for both. Whether something is told as a correction shows in the hidden states of its value, so a gate of the token's
can tell: it is the ridge regression on them that tells values of corrections from others, and from tokens that tell
nothing. Nothing else is touched: what a key, a value and a query are stays as it was.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from deltamem.errors import DataError
from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank
from deltamem.training.warm_start import delta_layers

_LEFT, _TAKEN, _AS_EVER = 0.55, 1.1, 1.0
"""Erase gates that are wanted, 0 to 2, of values of what is told, of corrections, and of what tells nothing: of that
what is written by mistake is to be gone with what is written next."""
_RIDGE = 0.26
"""Added to variances of 1."""
_LOOKED_AT = 8000
"""Tokens of a sort that are looked at, at most."""
_MISTAKEN = 800
"""Of those that tell nothing, so many: the ones whose write gates are nearest to being open."""


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
    some = [_some(numbers) for numbers in (corrections, others)]
    wanted = [_logit(gate) for gate in (_TAKEN, _LEFT, _AS_EVER)]
    for i, layer in enumerate(delta_layers(memory)):
        hidden = [bank.told[i][numbers].cpu().float() for numbers in some]
        direction, bias = _telling_apart([*hidden, _mistaken(layer, bank, i)], wanted)
        layer.erase_proj.copy_(direction.expand_as(layer.erase_proj))
        layer.erase_bias.fill_(bias)


def _some(numbers: Sequence[int]) -> Sequence[int]:
    return random.Random(0).sample(numbers, min(len(numbers), _LOOKED_AT))


def _mistaken(layer: DeltaLayer, bank: Bank, i: int) -> Tensor:
    """Hidden states (n, hidden size) of tokens that tell nothing and of ordinary talk, whose write gates stand open
    furthest.
    """
    hidden = torch.cat([bank.other[i], bank.idle[i]]).cpu().float()
    opened = layer.write_gates(hidden[None].to(layer.beta_proj.device))[0].flatten(1).mean(-1)
    return hidden[opened.topk(min(_MISTAKEN, len(hidden))).indices.cpu()]


def _telling_apart(sorts: Sequence[Tensor], wanted: Sequence[float]) -> tuple[Tensor, float]:
    """Weights (hidden size,) and bias of a gate's logit, from hidden states (n, hidden size) of sorts, each of which
    counts for as much, and the logits that are wanted of them. Means of the first two are what is wanted.
    """
    each = [torch.full((len(x),), 1 / (len(sorts) * len(x))) for x in sorts if len(x)]
    weight, x = torch.cat(each)[:, None], torch.cat(list(sorts))
    target = torch.cat([torch.full((len(x),), logit) for x, logit in zip(sorts, wanted, strict=True)])
    mean, spread = (weight * x).sum(0) / weight.sum(), x.std(0) + 1e-3
    z = (x - mean) / spread
    moments = (weight * z).T @ z / weight.sum() + _RIDGE * torch.eye(x.shape[1])
    found = torch.linalg.solve(moments, (weight * z).T @ (target - (weight[:, 0] * target).sum() / weight.sum()))
    taken, left = (float((part @ found).mean()) for part in z.split([len(x) for x in sorts])[:2])
    # A ridge draws logits together: they are drawn apart again.
    slope = (wanted[0] - wanted[1]) / (taken - left)
    direction = slope * found / spread
    return direction, wanted[1] - slope * left - float(direction @ mean)


def _logit(gate: float) -> float:
    """Of a gate of 0 to 2."""
    return math.log(gate / (2 - gate))
