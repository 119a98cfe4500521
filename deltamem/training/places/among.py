"""Tokens that what is to be said is told apart from in a step.

With words told there are tens of thousands of candidates, and most of a step would go to looking at every one. So a
step looks at what is to be said in it and at some of the others, each of which stands for as many as were not drawn:
its logit is raised by the logarithm of that, and the loss is, but for chance, the one among all (sampled softmax).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.training.places.tail import Tail


class Among(NamedTuple):
    """Some of all candidates.

    Attributes:
        ids: (n,) token ids, sorted.
        raised: (n,) logarithm of how many each stands for: 0 for what is to be said.
    """

    ids: Tensor
    raised: Tensor

    def logits(self, tail: Tail, residuals: Tensor) -> Tensor:
        """(N, n) after residuals (N, hidden size), as they are to be compared in a loss."""
        logits = tail(residuals, self.ids).float()
        return logits + self.raised.to(logits)

    def likeliest(self, logits: Tensor) -> Tensor:
        """(N,) numbers among `ids` of the tokens that are likeliest by `logits`, each standing for itself alone."""
        return (logits - self.raised.to(logits)).argmax(-1)

    def numbers(self, targets: Tensor) -> Tensor:
        """Where `targets`, all of them to be said, are in `ids`."""
        return torch.searchsorted(self.ids, targets.to(self.ids.device).contiguous())


def _not(ids: Tensor, known: Tensor) -> Tensor:
    """Which of `ids` (n,), sorted, are none of `known`."""
    at = torch.searchsorted(ids, known).clamp_max(len(ids) - 1)
    others = torch.ones(len(ids), dtype=torch.bool)
    others[at[ids[at] == known]] = False
    return others


def some_among(candidates: Tensor, said: Tensor, count: int, generator: torch.Generator, device: torch.device) -> Among:
    """What is to be said and other candidates.

    Args:
        candidates: token ids, sorted.
        said: token ids; all of them are among what comes of it.
        count: of others that are drawn, at most.
        generator: decides which.
        device: where logits are.
    """
    said = torch.unique(said.cpu())
    # `torch.isin` sorts all candidates anew, 22 ms in every step.
    others = candidates[_not(candidates, said)]
    drawn = others[torch.randperm(len(others), generator=generator)[:count]]
    raised = torch.full((len(drawn),), math.log(len(others) / len(drawn)) if len(drawn) else 0.0)
    ids, order = torch.cat([said, drawn]).sort()
    return Among(ids.to(device), torch.cat([torch.zeros(len(said)), raised])[order].to(device))
