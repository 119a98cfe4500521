"""The joint gate, trained on its own: open where a reply is about what one is told, shut in ordinary talk.

Where a reply begins, what it replies to has to be known from the hidden states of one token. After other turns of the
same conversation the read gates of single layers tell a question about oneself from an ordinary one hardly better than
chance, and all layers together nearly always (benchmarks/places.md). It is a logistic regression, and begins anew
whatever gate there was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.together import any_of, tell_apart
from deltamem.training.warm_start import delta_layers

_OPENINGS, _OPENING_BEGINS, _PLACES = 64, 192, 256
"""Hidden states in a step at which the gate is to be open: anywhere before a value, in the first few tokens of replies,
and where something told or never told is to be said."""
_IDLE, _IDLE_BEGINS = 208, 304
"""Those at which it is to be shut: anywhere in ordinary replies, and in their first few tokens."""
_LEAN = 1.0
"""Added to the logit. A question about oneself that is taken for an ordinary one is answered with what the backbone
makes up."""


def fit_joint_gate(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the joint gate.

    Args:
        memory: whose adapter is changed; its configuration has a joint gate.
        bank: what its layers see.
        steps: of Adam; 1200 for 26 layers of 576 take four minutes of one core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank has no ordinary talk, or nothing else.
    """
    if not bank.idle.shape[1] or not bank.places.shape[1]:
        raise DataError("the joint gate is learnt of ordinary talk beside questions about what was told")
    opening_begins, idle_begins = (some.nonzero()[:, 0] for some in (bank.opening_begins, bank.idle_begins))

    def draw(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        opened = [
            any_of(bank.openings, _OPENINGS, generator),
            any_of(bank.openings, _OPENING_BEGINS, generator, opening_begins),
            any_of(bank.places, _PLACES, generator),
        ]
        return opened, [any_of(bank.idle, _IDLE, generator), any_of(bank.idle, _IDLE_BEGINS, generator, idle_begins)]

    layers, kinds = delta_layers(memory), (bank.places, bank.idle)
    tell_apart(layers, "joint_gate", kinds, draw, steps, seed, "learning when to read", report, _LEAN)
