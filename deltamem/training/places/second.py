"""The second reader: what is learnt later asks with it, and the first one is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deltamem.layer import SECOND, DeltaLayer
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.together import any_of, tell_apart

_ROUTE_STEPS = 800
_LEAN = 0.75
"""Added to the logit: places inside of what is said of numbers are less alike than those of words."""
_PLACES, _OPENINGS = 128, 192
"""Hidden states in a step at which the second reader's reads are to count: where what it is for is to be said, and
where replies about that begin."""
_OTHER_PLACES, _OTHER_OPENINGS, _IDLE = 128, 320, 64
"""Those at which the first one's are."""


def begin_as_first(layers: Sequence[DeltaLayer]) -> None:
    """Let second readers ask what the first ones do."""
    with torch.no_grad():
        for layer in layers:
            for first, second in SECOND.items():
                if hasattr(layer, second):
                    getattr(layer, second).copy_(getattr(layer, first))


def as_second(layers: Sequence[DeltaLayer]) -> list[DeltaLayer]:
    """Copies that have the second reader alone, in the place of the first."""
    copies = [copy.deepcopy(layer) for layer in layers]
    for layer in copies:
        layer.config = replace(layer.config, second_reader=False)
        for first, second in SECOND.items():
            if hasattr(layer, second):
                setattr(layer, first, getattr(layer, second))
                delattr(layer, second)
        del layer.route_proj, layer.route_bias
    return copies


def put_back(layers: Sequence[DeltaLayer], learnt: Sequence[DeltaLayer]) -> None:
    """Put what such copies learnt into the layers: how they ask into the second readers, all else in its place."""
    with torch.no_grad():
        for layer, own in zip(layers, learnt, strict=True):
            for name, weight in own.named_parameters():
                getattr(layer, SECOND.get(name, name)).copy_(weight)


def fit_route(
    layers: Sequence[DeltaLayer],
    bank: Bank,
    said: Tensor,
    begun: Tensor,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """Learn whose reads count.

    Args:
        layers: whose route is changed.
        bank: what they see.
        said: (n,) of the bank's places, true where what the second reader is for is said.
        begun: (n,) of its openings, true where replies about that begin.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    places, openings = ([at.nonzero()[:, 0] for at in (mark, ~mark)] for mark in (said, begun))

    def draw(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        second, first = (
            [any_of(bank.places, n, generator, places[i]), any_of(bank.openings, m, generator, openings[i])]
            for i, (n, m) in enumerate(((_PLACES, _OPENINGS), (_OTHER_PLACES, _OTHER_OPENINGS)))
        )
        return second, [*first, any_of(bank.idle, _IDLE, generator)]

    kinds = [hidden for hidden in (bank.places, bank.openings, bank.idle) if hidden.shape[1]]
    tell_apart(layers, "route", kinds, draw, _ROUTE_STEPS, seed, "learning whose reads count", report, _LEAN)
