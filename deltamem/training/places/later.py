"""A later reader: what is learnt later asks with it, and those before it are left as they were."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deltamem.layer import DeltaLayer
from deltamem.readers import Reader, later_readers
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.together import any_of, tell_apart

_ROUTE_STEPS = 800
_LEAN = 0.75
"""Added to the logit: places inside of what is said of numbers are less alike than those of words."""
_PLACES, _OPENINGS = 128, 192
"""Hidden states in a step at which its reads are to count: where what it is for is to be said, and where replies about
that begin."""
_OTHER_PLACES, _OTHER_OPENINGS, _IDLE = 128, 320, 64
"""Those at which others' are."""


def begin_as(layers: Sequence[DeltaLayer], reader: Reader, before: Reader | None = None) -> None:
    """Let a later reader ask what one before it does, or the first."""
    with torch.no_grad():
        for layer in layers:
            for first, own in reader.instead.items():
                if hasattr(layer, own):
                    getattr(layer, own).copy_(getattr(layer, before.instead[first] if before else first))


def alone(layers: Sequence[DeltaLayer], reader: Reader) -> list[DeltaLayer]:
    """Copies that have a later reader alone, in the place of the first."""
    copies = [copy.deepcopy(layer) for layer in layers]
    for layer in copies:
        for first, own in reader.instead.items():
            if hasattr(layer, own):
                setattr(layer, first, getattr(layer, own))
        for one in later_readers(layer.config):
            for name in (*one.instead.values(), f"{one.route}_proj", f"{one.route}_bias"):
                if hasattr(layer, name):
                    delattr(layer, name)
        layer.config = replace(layer.config, second_reader=False, third_reader=False)
    return copies


def put_back(layers: Sequence[DeltaLayer], learnt: Sequence[DeltaLayer], reader: Reader) -> None:
    """Put what such copies learnt into the layers: how they ask into that reader, all else in its place."""
    with torch.no_grad():
        for layer, own in zip(layers, learnt, strict=True):
            for name, weight in own.named_parameters():
                getattr(layer, reader.instead.get(name, name)).copy_(weight)


def fit_route(
    layers: Sequence[DeltaLayer],
    bank: Bank,
    said: Tensor,
    begun: Tensor,
    reader: Reader,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """Learn whose reads count: a later reader's, or those of the ones before it.

    Args:
        layers: whose route is changed.
        bank: what they see.
        said: (n,) of the bank's places, true where what the reader is for is said.
        begun: (n,) of its openings, true where replies about that begin.
        reader: that one.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    places, openings = ([at.nonzero()[:, 0] for at in (mark, ~mark)] for mark in (said, begun))

    def draw(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        own, others = (
            [any_of(bank.places, n, generator, places[i]), any_of(bank.openings, m, generator, openings[i])]
            for i, (n, m) in enumerate(((_PLACES, _OPENINGS), (_OTHER_PLACES, _OTHER_OPENINGS)))
        )
        return own, [*others, any_of(bank.idle, _IDLE, generator)]

    kinds = [hidden for hidden in (bank.places, bank.openings, bank.idle) if hidden.shape[1]]
    tell_apart(layers, reader.route, kinds, draw, _ROUTE_STEPS, seed, "learning whose reads count", report, _LEAN)
