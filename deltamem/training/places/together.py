"""A gate of all layers: a logistic regression on what enters them, which tells two sorts of places apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.layer import DeltaLayer
from deltamem.training.places.bank import Report
from deltamem.training.places.descent import descend, noisy, some_of

_DECAY = 1e-3
"""Of squared weights, for hidden states of unit variance."""
_SHARPER = 2.0
"""Times the logit: few tokens are then read at half their strength."""
_SAMPLE = 4096
"""Hidden states, at most, of each kind that mean and variance are measured of."""


def tell_apart(
    layers: Sequence[DeltaLayer],
    gate: str,
    kinds: Sequence[Tensor],
    draw: Callable[[torch.Generator], tuple[Sequence[Tensor], Sequence[Tensor]]],
    steps: int,
    seed: int,
    what: str,
    report: Report | None = None,
    lean: float = 0.0,
) -> None:
    """Fit layers' parts in a gate, which begins anew.

    Args:
        layers: of one adapter.
        gate: which of theirs, by the name before `_proj` and `_bias`.
        kinds: all hidden states there are, (layers, n, hidden size) of each kind, to measure how they vary.
        draw: those of a step at which the gate is to be open, and those at which it is to be shut.
        steps: of Adam.
        seed: of everything random.
        what: is being done, for `report`.
        report: called with that and the share done.
        lean: added to the logit.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.cat([any_of(hidden, _SAMPLE, generator) for hidden in kinds], dim=1).float()
    mean, spread = sample.mean(1, keepdim=True), sample.std(1, keepdim=True).clamp_min(1e-3)
    weights = torch.zeros(len(layers), 1, sample.shape[-1], device=sample.device, requires_grad=True)
    bias = torch.zeros(1, device=sample.device, requires_grad=True)
    ones = torch.ones((), device=sample.device)

    def loss() -> Tensor:
        opened, shut = draw(generator)
        count = sum(hidden.shape[1] for hidden in opened)
        x = (torch.cat([*opened, *shut], dim=1).float() - mean) / spread
        logits = (noisy(x, ones, generator) * weights).sum((0, 2)) + bias
        return told_apart(logits, count, weights)

    descend([weights, bias], loss, steps, what, report)
    with torch.no_grad():
        found = _SHARPER * weights / spread
        shift = (_SHARPER * (bias + lean) - (found * mean).sum()) / len(layers)
        for layer, own in zip(layers, found, strict=True):
            getattr(layer, f"{gate}_proj").copy_(own)
            getattr(layer, f"{gate}_bias").copy_(shift)


def told_apart(logits: Tensor, opened: int, weights: Tensor) -> Tensor:
    """Cross-entropy of a gate that is to be open at the first so many places, and a little of its squared weights."""
    wanted = (torch.arange(len(logits), device=logits.device) < opened).float()
    return F.binary_cross_entropy_with_logits(logits, wanted) + _DECAY * weights.square().sum()


def any_of(hidden: Tensor, count: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """Some of hidden states (layers, n, hidden size), of those numbered `among`; none where there are none."""
    some = some_of(hidden.shape[1] if among is None else len(among), count, generator)
    return hidden[:, (some if among is None else among[some]).to(hidden.device)]
