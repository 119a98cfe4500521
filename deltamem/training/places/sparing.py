"""Weights that learn something new and leave alone what they know.

A change of a weight is made up in coordinates in which hidden states that it is to leave alone all vary by the same:
in directions in which they vary much a step goes a short way, and a long one in those that they hardly have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.layer import DeltaLayer
from deltamem.training.places.descent import some_of
from deltamem.training.places.stacked import Stacked

_RIDGE = 1e-3
"""Added to variances, relative to their mean."""


_SAMPLE = 12000
"""Hidden states of a sort that are looked at, at most, for how they vary."""


class Known(NamedTuple):
    """Hidden states that are to be left alone, by layer.

    Attributes:
        moments: (layers, hidden size, hidden size), their second moments.
        evening: (layers, hidden size, hidden size), with which they vary by the same in all directions.
    """

    moments: Tensor
    evening: Tensor

    @staticmethod
    def of(*sorts: Tensor) -> Known:
        """Of hidden states (layers, n, hidden size) of several sorts, each of which counts the same."""
        found = [hidden.float().mT @ hidden.float() / hidden.shape[1] for hidden in sorts if hidden.shape[1]]
        moments = torch.stack(found).mean(0)
        sizes, directions = torch.linalg.eigh(moments)
        mean = sizes.mean(-1, keepdim=True)
        scale = (mean / (sizes.clamp_min(0) + _RIDGE * mean)).sqrt()
        return Known(moments, (directions * scale[:, None]) @ directions.mT)

    @staticmethod
    def of_some(generator: torch.Generator, device: torch.device, *sorts: tuple[Tensor, Tensor]) -> Known:
        """The same on a device, of some of hidden states of several sorts, of those that are numbered (n,)."""
        some = [hidden[:, of[some_of(len(of), min(len(of), _SAMPLE), generator)]] for hidden, of in sorts]
        return Known.of(*(hidden.to(device) for hidden in some))


class Sparing:
    """Changes of an adapter's weights.

    Args:
        layers: of the adapter; their own weights stay until `keep`.
        known: by the name of each weight that is changed, what its products are to stay for.
    """

    def __init__(self, layers: Sequence[DeltaLayer], known: Mapping[str, Known]) -> None:
        self._layers, self._known = list(layers), dict(known)
        self._weights = {name: torch.stack([getattr(layer, name).detach() for layer in layers]) for name in known}
        self.steps = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in self._weights.items()}

    def changed(self) -> dict[str, Tensor]:
        """The weights, (layers, n, hidden size)."""
        return {name: self._weights[name] + step @ self._known[name].evening for name, step in self.steps.items()}

    def stacked(self) -> Stacked:
        """The layers with the changed weights."""
        return Stacked(self._layers, self.changed())

    def moved(self) -> Tensor:
        """How far products of what is known have moved, of their mean square; the mean over weights."""
        moved = []
        for name, now in self.changed().items():
            was, moments = self._weights[name], self._known[name].moments
            moved.append(_mean_square(now - was, moments) / _mean_square(was, moments).clamp_min(1e-12))
        return torch.stack(moved).mean()

    @torch.no_grad()
    def keep(self) -> None:
        """Put the changed weights into the layers."""
        for name, now in self.changed().items():
            for layer, weight in zip(self._layers, now, strict=True):
                getattr(layer, name).copy_(weight)


def _mean_square(weights: Tensor, moments: Tensor) -> Tensor:
    """Of products of weights (layers, n, hidden size) with hidden states of such moments."""
    return torch.einsum("lnh,lhg,lng->", weights, moments, weights)
