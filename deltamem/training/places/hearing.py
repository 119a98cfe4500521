"""Where replies are about what was told, by regression: all readers' joint gates, after all else.

Gates learnt step by step shut for what is like what they were shown. Ridge regression of all layers' hidden states
opens less often in text and talk that training never saw, and as often for new ways to ask (benchmarks/places.md); a
part of what was learnt is kept, as it says where which reader is heard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.readers import later_readers
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.ridge import regress, side_by_side
from deltamem.training.warm_start import delta_layers

_RIDGE = 1e-2
"""Added to the diagonal, relative to its mean."""
_BEGINS = 5.0
"""What the first few tokens of ordinary replies count for: there it shows whether one is asked about oneself."""
_LEARNT, _FOUND = 0.3, 8.0
"""Logits of what was learnt, and of what regression says, which is 1 for what is about what was told and -1 else."""
_FROM = -0.05
"""Where that opens a gate as far as it shuts it."""
_SAMPLE = 4096
"""Hidden states that their spread is measured of."""


def fit_hearing(memory: DeltaMemory, bank: Bank, seed: int = 0, report: Report | None = None) -> None:
    """Set all joint gates.

    Args:
        memory: whose adapter is changed; it has a joint gate, which has learnt where to be open.
        bank: what its layers see; with ordinary talk.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank has no ordinary talk.
    """
    if not bank.idle.shape[1]:
        raise DataError("where memory is heard is learnt of a bank that has ordinary talk")
    generator = torch.Generator().manual_seed(seed)
    layers = delta_layers(memory)
    parts = (bank.openings, bank.places, bank.idle)
    ends = torch.tensor([part.shape[1] for part in parts]).cumsum(0)
    device = layers[0].joint_gate_proj.device
    some = torch.randint(int(ends[-1]), (_SAMPLE,), generator=generator).sort().values
    as_it_is = torch.ones(len(layers), 1, bank.idle.shape[2], device=device)
    sample = side_by_side(parts, some, as_it_is).std(0).clamp_min(1e-3)
    spread = sample.unflatten(0, (len(layers), 1, -1))

    def seen(numbers: Tensor) -> Tensor:
        return side_by_side(parts, numbers, spread)

    def wanted(numbers: Tensor) -> Tensor:
        return torch.where(numbers < ends[1], 1.0, -1.0)[:, None].to(device)

    counts = torch.ones(int(ends[-1]))
    ordinary = counts[int(ends[1]) :]
    ordinary[bank.idle_begins] = _BEGINS
    # Both sorts count for as much, however many places there are of each.
    ordinary *= int(ends[1]) / float(ordinary.sum())
    found = regress(seen, wanted, counts, _RIDGE, generator, "reading where memory is heard", report)
    by = found.weights[:, 0].unflatten(0, (len(layers), -1)) / spread[:, 0]
    alone = _FOUND * float(found.wanted - found.seen @ found.weights[:, 0] - _FROM)
    gates = ["joint_gate_proj", *(reader.instead["joint_gate_proj"] for reader in later_readers(memory.config))]
    with torch.no_grad():
        for layer, own in zip(layers, by, strict=True):
            for name in gates:
                gate = getattr(layer, name)
                gate.mul_(_LEARNT).add_(_FOUND * own)
            layer.joint_gate_bias.mul_(_LEARNT).add_(alone / len(layers))
