"""A state in a few lines: how full it is, how it came to be, and what should be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltamem.inspection.heads import Matrices, change_between, effective_rank

_FULL = 0.9
"""Share of its directions in use above which a matrix counts as saturated."""
_LOUD = 5.0
"""A norm so many times the median of the others counts as out of the ordinary."""


@dataclass(frozen=True)
class Moment:
    """One state of the past.

    Attributes:
        turns: turns in the profile then.
        kind: what made it: turn, forget, begin, merge.
        time: UTC.
        norm: Frobenius norm of the whole state.
        effective_rank: mean over matrices.
        change: from the state before it, relative to its own norm.
        gates: per layer, the mean write gate of the turn; empty where it is not known.
    """

    turns: int
    kind: str
    time: str
    norm: float
    effective_rank: float
    change: float
    gates: tuple[float, ...]

    @classmethod
    def of(cls, matrices: Matrices, **about: Any) -> Moment:
        """A moment of a state."""
        return cls(norm=float(np.linalg.norm(matrices)), effective_rank=float(effective_rank(matrices).mean()), **about)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Overview:
    """A state as a whole.

    Attributes:
        empty: nothing was written yet, or all was forgotten.
        norm: Frobenius norm of the whole state.
        rank: r.
        used: directions in use, the mean effective rank of a matrix.
        last_turn: change by the last turn, relative to the norm now.
        lately: change over the last `lately_turns` turns, likewise.
        lately_turns: turns that `lately` looks back; 0 where there is no past.
        saturated: layers where more than nine tenths of the directions are in use: there, what is new can only be
            written over what is old.
        loud: layers whose norm is over five times the median.
    """

    empty: bool
    norm: float
    rank: int
    used: float
    last_turn: float
    lately: float
    lately_turns: int
    saturated: tuple[int, ...]
    loud: tuple[int, ...]

    @property
    def fullness(self) -> float:
        """Share of the directions in use, 0 to 1."""
        return self.used / self.rank

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"fullness": self.fullness}


def overview(
    matrices: Matrices, before: Matrices, layers: Sequence[int], past: Matrices | None = None, past_turns: int = 0
) -> Overview:
    """Look at a state.

    Args:
        matrices: the state.
        before: the state before the last turn.
        layers: numbers of the layers in the backbone.
        past: the state `past_turns` turns ago, where it is known.
        past_turns: see `past`.
    """
    ranks = effective_rank(matrices)
    norms = np.linalg.norm(matrices, axis=(-2, -1))
    median = float(np.median(norms))
    return Overview(
        empty=not matrices.any(),
        norm=float(np.linalg.norm(matrices)),
        rank=matrices.shape[-1],
        used=float(ranks.mean()),
        last_turn=change_between(before, matrices),
        lately=change_between(past, matrices) if past is not None else 0.0,
        lately_turns=past_turns if past is not None else 0,
        saturated=_layers(ranks > _FULL * matrices.shape[-1], layers),
        loud=_layers(norms > _LOUD * median, layers) if median else (),
    )


def _layers(where: NDArray[np.bool_], layers: Sequence[int]) -> tuple[int, ...]:
    return tuple(layer for i, layer in enumerate(layers) if where[i].any())
