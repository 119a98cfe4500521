"""Longer keys and values for an adapter that was trained with shorter ones.

Its own stay in the first places, and the state grows around them. What is new in keys and queries are the directions
that come next among those a fresh adapter would start with; what is new in values says nothing yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.directions import agreeing
from deltamem.training.places.names import pairs, telling
from deltamem.training.warm_start import delta_layers

_SPREAD = 0.5
"""Spread of the new numbers of keys and queries before the hyperbolic tangent. From 32 to 64, before any training,
value tokens of 8 facts of held-out people were right in 80, 81, 84, 83 and 79 % with none, 0.15, 0.5, 1 and 2."""


def lengthen(before: DeltaMemory, memory: DeltaMemory, bank: Bank, seed: int = 0, report: Report | None = None) -> None:
    """Give a fresh memory the weights of one with a smaller rank, and new directions beside them.

    Args:
        before: the adapter with its smaller rank; detached from the backbone by now.
        memory: whose adapter is changed.
        bank: what its layers see.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    heads, rank, had = memory.config.num_state_heads, memory.config.rank, before.config.rank
    named = pairs(bank)
    generator = torch.Generator().manual_seed(seed)
    layers = list(zip(delta_layers(memory), delta_layers(before), strict=True))
    for i, (layer, old) in enumerate(layers):
        if report is not None:
            report("fitting longer keys", i / len(layers))
        for name, mine in layer.named_parameters():
            theirs: Tensor = getattr(old, name)
            with torch.no_grad():
                if mine.shape == theirs.shape:
                    mine.copy_(theirs)
                elif name == "base_state":
                    mine.zero_()[:, :had, :had] = theirs
                elif name == "delta_o_proj":
                    mine.zero_().unflatten(1, (heads, rank))[:, :, :had] = theirs.unflatten(1, (heads, had))
                elif name.startswith("memory_"):
                    mine.unflatten(0, (heads, rank))[:, :had] = theirs.unflatten(0, (heads, had))
        heard, places = telling(memory.config, bank, named.told, i), bank.places[i][named.asked].float()
        keys, queries = (
            found[heads * had :] for found in agreeing(heard, named.told_about, places, named.asked_about, heads * rank)
        )
        turn, _ = torch.linalg.qr(torch.randn(len(keys), len(keys), generator=generator))
        for weight, directions, seen in ((layer.memory_k_proj, keys, heard), (layer.memory_q_proj, queries, places)):
            new = turn @ directions
            new *= _SPREAD / (seen @ new.T).std().clamp_min(1e-6)
            with torch.no_grad():
                weight.unflatten(0, (heads, rank))[:, had:] = new.unflatten(0, (heads, rank - had)).to(weight)
