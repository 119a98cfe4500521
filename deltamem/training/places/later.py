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
from deltamem.training.places.descent import descend, noisy
from deltamem.training.places.together import any_of, tell_apart, told_apart

_ROUTE_STEPS, _GATE_STEPS = 800, 400
_PLACES, _OPENINGS = 128, 192
"""Hidden states in a step at which its reads are to count: where what it is for is to be said, and where replies about
that begin."""
_OTHER_PLACES, _OTHER_OPENINGS, _IDLE = 128, 320, 64
"""Those at which others' are."""
_OPEN, _SHUT, _SHUT_BEGINS = 256, 208, 304
"""Of each of the former, where its joint gate is to be open, and hidden states of ordinary talk, anywhere and where
replies begin, where it is to be shut."""
_SAMPLE = 2048
"""Hidden states, at most, of each kind that variance is measured of."""


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
    lean: float = 0.75,
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
        lean: added to the logit: places inside of what is said of numbers are less alike than those of words.
    """
    places, openings = ([at.nonzero()[:, 0] for at in (mark, ~mark)] for mark in (said, begun))

    def draw(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        own, others = (
            [any_of(bank.places, n, generator, places[i]), any_of(bank.openings, m, generator, openings[i])]
            for i, (n, m) in enumerate(((_PLACES, _OPENINGS), (_OTHER_PLACES, _OTHER_OPENINGS)))
        )
        return own, [*others, any_of(bank.idle, _IDLE, generator)]

    kinds = [hidden for hidden in (bank.places, bank.openings, bank.idle) if hidden.shape[1]]
    tell_apart(layers, reader.route, kinds, draw, _ROUTE_STEPS, seed, "learning whose reads count", report, lean)


def fit_gate(
    layers: Sequence[DeltaLayer],
    bank: Bank,
    said: Tensor,
    begun: Tensor,
    reader: Reader,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """Learn where what a later reader reads is heard at all; its joint gate goes on from what it is.

    Args:
        layers: whose parts in that gate are changed; the biases, which all readers share, stay.
        bank: what they see.
        said: as for `fit_route`.
        begun: as for `fit_route`.
        reader: that one.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    generator, name = torch.Generator().manual_seed(seed), reader.instead["joint_gate_proj"]
    kinds = [hidden for hidden in (bank.places, bank.openings, bank.idle) if hidden.shape[1]]
    spread = torch.cat([any_of(hidden, _SAMPLE, generator) for hidden in kinds], dim=1).float().std(1, keepdim=True)
    spread = spread.clamp_min(1e-3)
    was = torch.stack([getattr(layer, name).detach() for layer in layers])
    bias = torch.stack([layer.joint_gate_bias.detach() for layer in layers]).sum()
    moved = torch.zeros_like(was, requires_grad=True)
    inside, begins, idle_begins = (mark.nonzero()[:, 0] for mark in (said, begun, bank.idle_begins))

    def loss() -> Tensor:
        opened = [any_of(bank.places, _OPEN, generator, inside), any_of(bank.openings, _OPEN, generator, begins)]
        shut = [any_of(bank.idle, _SHUT, generator), any_of(bank.idle, _SHUT_BEGINS, generator, idle_begins)]
        x = noisy(torch.cat([*opened, *shut], dim=1), spread, generator)
        logits = (x * (was + moved / spread)).sum((0, 2)) + bias
        return told_apart(logits, sum(hidden.shape[1] for hidden in opened), moved)

    descend([moved], loss, _GATE_STEPS, "learning where it is heard", report)
    with torch.no_grad():
        for layer, own in zip(layers, was + moved / spread, strict=True):
            getattr(layer, name).copy_(own)
