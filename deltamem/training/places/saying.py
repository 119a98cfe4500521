"""W_v and D_o trained on their own: what is read of a told token is to say it, whatever is read along with it.

What a query reads is its own value by the cosine with its key, and others' by theirs. What those cosines are is known
when keys are fitted, so they are drawn: no history has to be written, and anything that was told can be asked for,
every word piece of the tokenizer among it. A step takes a sixth of one on places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.tail import Tail
from deltamem.training.places.vocabulary import Told
from deltamem.training.warm_start import delta_layers

_RATE, _WARMUP = 2e-3, 20
_SAID = 256
"""Tokens said in a step; each is read with some of the others."""
_FROM_THE_BANK = 0.6
"""Share of them that stands in the bank's own histories."""
_AMONG = 8000
"""Tokens each is told apart from in a step, at most, besides those said in it."""
_OPEN = 0.5
"""What write gates and read gates leave of a cosine, both together."""
_LEAST = 0.1
_ALONG = 18
"""Tokens read along: about so many are those of eight facts."""
_OWN_BY_LAYER = 0.7
"""How far a layer's own cosine is from the mean of all, beside how far others' are from none."""
_NOISE = 0.2
"""On hidden states, relative to their spread."""


@dataclass(frozen=True)
class Reading:
    """Cosines, as `places/keys.py` leaves them on held-out people.

    Attributes:
        own: mean over tokens of a query's cosine with its own key.
        spread: their standard deviation.
        by_layer: that of a layer's cosines with others' keys.
    """

    own: float = 0.39
    spread: float = 0.14
    by_layer: float = 0.15


class Saying:
    """Told tokens that are to be said.

    Args:
        memory: whose adapter is trained; its corrections go to the last layer.
        bank: what its layers see.
        told: more tokens, as `tell_vocabulary` gives them.
        reading: the cosines there are.
    """

    def __init__(
        self, memory: DeltaMemory, bank: Bank, told: Told | None = None, reading: Reading | None = None
    ) -> None:
        self._memory, self._bank, self._told, self._reading = memory, bank, told, reading or Reading()
        self._tail, self._places = Tail(memory), bank.values.nonzero()[:, 0]
        self._spread = bank.told[:, :_SAID].float().std(dim=(1, 2))[:, None, None]
        self._known = bank.candidates if told is None else torch.unique(torch.cat([bank.candidates, told.ids]))

    def loss(self, generator: torch.Generator) -> Tensor:
        """Cross-entropy of some told tokens among some others; `generator` decides which."""
        bank, more = self._bank, self._told
        from_bank = _SAID if more is None else round(_FROM_THE_BANK * _SAID)
        some = torch.randint(bank.told.shape[1], (from_bank,), generator=generator)
        hidden, ids = bank.told[:, some], bank.told_ids[some]
        if more is not None:
            rest = torch.randint(len(more.ids), (_SAID - from_bank,), generator=generator)
            hidden, ids = torch.cat([hidden, more.hidden[:, rest]], dim=1), torch.cat([ids, more.ids[rest]])
        noise = (torch.rand(hidden.shape[1:], generator=generator) - 0.5) * math.sqrt(12)
        others = self._known[torch.randint(len(self._known), (_AMONG,), generator=generator)]
        among = torch.unique(torch.cat([ids, others]))
        logits = self._read(hidden.float() + _NOISE * self._spread * noise, among, generator)
        return F.cross_entropy(logits, torch.searchsorted(among, ids).to(logits.device))

    @torch.no_grad()
    def right(self, generator: torch.Generator) -> float:
        """Share of the bank's told tokens that are said right among its candidates."""
        bank, right = self._bank, 0
        for some in torch.randperm(bank.told.shape[1], generator=generator).split(_SAID):
            logits = self._read(bank.told[:, some].float(), bank.candidates, generator)
            right += int((bank.candidates[logits.argmax(-1).cpu()] == bank.told_ids[some]).sum())
        return right / bank.told.shape[1]

    def _read(self, hidden: Tensor, among: Tensor, generator: torch.Generator) -> Tensor:
        """Logits of the tokens `among` (n, tokens) where each of some told ones (layers, n, hidden size) is read, at
        any place of a value.
        """
        layers, count, reading = delta_layers(self._memory), hidden.shape[1], self._reading
        device = layers[0].memory_v_proj.device
        along = torch.rand(count, count, generator=generator) < _ALONG / count
        cosines = reading.by_layer * torch.randn(len(layers), count, count, generator=generator) * along
        own = (reading.own + reading.spread * torch.randn(count, generator=generator)).clamp_min(_LEAST)
        own = own + _OWN_BY_LAYER * reading.by_layer * torch.randn(len(layers), count, generator=generator)
        cosines.diagonal(dim1=1, dim2=2).copy_(own)
        where = self._places[torch.randint(len(self._places), (count,), generator=generator)]
        found = self._bank.residuals[where].to(device).float()
        for layer, x, weight in zip(layers, hidden.to(device), (_OPEN * cosines).to(device), strict=True):
            found = found + layer.correction("o", weight @ F.linear(x, layer.memory_v_proj))
        return self._tail(found, among.to(device))


def fit_saying(memory: DeltaMemory, saying: Saying, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train W_v and D_o.

    Args:
        memory: whose adapter is changed.
        saying: of that memory.
        steps: of Adam; 1,000 of rank 64 in 26 layers take four minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    weights = [w for layer in delta_layers(memory) for w in (layer.memory_v_proj, layer.delta_o_proj)]
    optimizer = torch.optim.Adam(weights, lr=_RATE, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = saying.loss(generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if report is not None and step % 20 == 0:
            report("learning to say what is read", step / steps)
