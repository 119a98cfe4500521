"""The joint gate, trained on its own: open where a reply is about what one is told, shut in ordinary talk.

Where a reply begins, what it replies to has to be known from the hidden states of one token. After other turns of the
same conversation the read gates of single layers tell a question about oneself from an ordinary one hardly better than
chance, and all layers together nearly always (benchmarks/places.md). It is a logistic regression, and begins anew
whatever gate there was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.descent import descend, noisy, some_of
from deltamem.training.warm_start import delta_layers

_OPENINGS, _OPENING_BEGINS, _PLACES = 64, 192, 256
"""Hidden states in a step at which the gate is to be open: anywhere before a value, in the first few tokens of replies,
and where something told or never told is to be said."""
_IDLE, _IDLE_BEGINS = 208, 304
"""Those at which it is to be shut: anywhere in ordinary replies, and in their first few tokens."""
_DECAY = 1e-3
"""Of squared weights, for hidden states of unit variance."""
_LEAN = 1.0
"""Added to the logit. A question about oneself that is taken for an ordinary one is answered with what the backbone
makes up."""
_SHARPER = 2.0
"""Times the logit: few tokens are then read at half their strength."""
_SAMPLE = 4096
"""Hidden states, at most, of each kind that mean and variance are measured of."""


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
    layers, device = delta_layers(memory), bank.idle.device
    generator = torch.Generator().manual_seed(seed)
    sample = torch.cat([_any(hidden, _SAMPLE, generator) for hidden in (bank.places, bank.idle)], dim=1).float()
    mean, spread = sample.mean(1, keepdim=True), sample.std(1, keepdim=True).clamp_min(1e-3)
    weights = torch.zeros(len(layers), 1, layers[0].hidden_size, device=device, requires_grad=True)
    bias = torch.zeros(1, device=device, requires_grad=True)
    opening_begins, idle_begins = (some.nonzero()[:, 0] for some in (bank.opening_begins, bank.idle_begins))
    ones = torch.ones((), device=device)

    def loss() -> Tensor:
        wanted_open = [
            _any(bank.openings, _OPENINGS, generator),
            _any(bank.openings, _OPENING_BEGINS, generator, opening_begins),
            _any(bank.places, _PLACES, generator),
        ]
        wanted_shut = [_any(bank.idle, _IDLE, generator), _any(bank.idle, _IDLE_BEGINS, generator, idle_begins)]
        count = sum(hidden.shape[1] for hidden in wanted_open)
        x = (torch.cat(wanted_open + wanted_shut, dim=1).float() - mean) / spread
        logits = (noisy(x, ones, generator) * weights).sum((0, 2)) + bias
        wanted = (torch.arange(len(logits), device=device) < count).float()
        return F.binary_cross_entropy_with_logits(logits, wanted) + _DECAY * weights.square().sum()

    descend([weights, bias], loss, steps, "learning when to read", report)
    with torch.no_grad():
        found = _SHARPER * weights / spread
        shift = (_SHARPER * (bias + _LEAN) - (found * mean).sum()) / len(layers)
        for layer, own in zip(layers, found, strict=True):
            layer.joint_gate_proj.copy_(own)
            layer.joint_gate_bias.copy_(shift)


def _any(hidden: Tensor, count: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """Some of hidden states (layers, n, hidden size), of those numbered `among`; none where there are none."""
    some = some_of(hidden.shape[1] if among is None else len(among), count, generator)
    return hidden[:, (some if among is None else among[some]).to(hidden.device)]
