"""What a turn wrote: the write gates of its tokens, gathered while the turn goes on and worked out when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltamem.memory import DeltaMemory
from deltamem.replies import opened_by_layer
from deltamem.session.detokenize import Detokenizer


@dataclass(frozen=True)
class TurnWrites:
    """The write gates (beta) of a turn.

    Attributes:
        tokens: the text of each written token, in order, with its gate: the mean over layers, heads and rows, 0 to 1.
            Where whole segments are written, the tokens of one have its gate.
        layers: per adapted layer, the mean gate over what was written.
    """

    tokens: tuple[tuple[str, float], ...]
    layers: tuple[float, ...]


class WriteTrace:
    """Gathers references to gates; nothing is computed before `finish`.

    Args:
        memory: whose writes are watched; None gathers nothing.
        tokenizer: for the text of the tokens.
    """

    def __init__(self, memory: DeltaMemory | None, tokenizer: Any) -> None:
        self._memory, self._tokenizer = memory, tokenizer
        self.begin()

    def begin(self) -> None:
        """A turn begins."""
        self._ids: list[int] = []
        self._gates: dict[int, list[Tensor]] = {}
        self._ends: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the length of a call, or of closing a segment."""
        if self._memory is None:
            yield
            return
        with self._memory.tracing(self._note):
            yield

    def fed(self, ids: Sequence[int]) -> None:
        """These tokens were written, or will be when their segment is closed."""
        self._ids += ids

    def _note(self, layer: int, gates: Tensor) -> None:
        if not self._gates or layer == next(iter(self._gates)):
            self._ends.append(len(self._ids))
        self._gates.setdefault(layer, []).append(gates)

    @property
    def widest(self) -> float:
        """How far the write gates of the turn stood open so far, where they did so most (see `opened`), 0 to 1."""
        if not self._gates:
            return 0.0
        return float(self._by_layer().mean(0).max())

    def finish(self) -> TurnWrites | None:
        """The turn's gates; None where nothing was written."""
        if self._memory is None or not self._gates or not self._ids:
            return None
        stacked = self._by_layer().cpu()
        means = stacked.mean(0).tolist()
        if self._memory.config.writes_segments:
            means = [gate for gate, count in zip(means, _lengths(self._ends), strict=True) for _ in range(count)]
        tokens = zip(_texts(self._tokenizer, self._ids), means, strict=False)
        return TurnWrites(tuple(tokens), tuple(round(x, 4) for x in stacked.mean(1).tolist()))

    def _by_layer(self) -> Tensor:
        """How far the gates stood open, (layers, written tokens or segments)."""
        return opened_by_layer([torch.cat(gates, dim=1) for gates in self._gates.values()])[:, 0]


def _lengths(ends: Sequence[int]) -> list[int]:
    return [end - before for before, end in zip([0, *ends], ends, strict=False)]


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; that of a character in several tokens stands at the last of them."""
    text = Detokenizer(tokenizer)
    pieces = [text.add(token) for token in ids]
    if pieces:
        pieces[-1] += text.finish()
    return pieces
