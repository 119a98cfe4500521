"""Places by the history they are about, so that each history's states are read once for all of its places."""

from __future__ import annotations

import torch
from torch import Tensor


class ByRow:
    """Lays places out row by row, padded on the right.

    Args:
        rows: (P,), the row of each place.
        count: how many rows there are.
    """

    def __init__(self, rows: Tensor, count: int) -> None:
        order = rows.argsort(stable=True)
        many = torch.bincount(rows, minlength=count)
        before = many.cumsum(0) - many
        self._shape = (count, max(1, int(many.max())))
        nth = torch.arange(len(rows), device=rows.device) - before[rows[order]]
        self._at = torch.empty_like(rows)
        self._at[order] = rows[order] * self._shape[1] + nth

    def padded(self, x: Tensor) -> Tensor:
        """(P, ...) as (rows, places of a row, ...), zeros where there is none."""
        found = x.new_zeros(self._shape[0] * self._shape[1], *x.shape[1:])
        found[self._at] = x
        return found.view(*self._shape, *x.shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """The other way."""
        found: Tensor = x.flatten(0, 1)[self._at]
        return found
