"""Hidden states at chosen places, as the adapted layers see them, and what stands at those places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltamem.episodes.batches import ReadBatch, WriteBatch
from deltamem.episodes.episode import Episode, Question
from deltamem.memory import DeltaMemory

Name = tuple[str, int | None]
"""What a token of a value is found by: what the fact is about, and the token before it where it is not the first."""


class Recorder:
    """Keeps what enters the adapted attention layers at some places of a call, without gradient.

    Args:
        memory: whose layers are watched.
        places: (B, T), true where hidden states are kept.
        dtype: that they are kept in.
    """

    def __init__(self, memory: DeltaMemory, places: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self._memory = memory
        self._places = places
        self._dtype = dtype
        self._seen: list[Tensor] = []

    def __enter__(self) -> Recorder:
        def keep(_: int, hidden: Tensor) -> None:
            self._seen.append(hidden.detach()[self._places.to(hidden.device)].to(self._dtype))

        self._stop = self._memory.watch(keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def stacked(self) -> Tensor:
        """(layers, places, hidden), the places row by row."""
        return torch.stack(self._seen)


def _about(question: Question) -> str:
    """The same for every value and phrasing of a fact."""
    return question.answer.replace(question.value or "", "", 1)


def told_names(batch: WriteBatch, episodes: Sequence[Episode]) -> list[Name]:
    """Names of the tokens where `batch.values` is not 0, row by row."""
    names: list[Name] = []
    for b, t in (batch.values > 0).nonzero().tolist():
        mark = int(batch.values[b, t])
        later = t > 0 and int(batch.values[b, t - 1]) == mark
        names.append((_about(episodes[b].asked[mark - 1]), int(batch.ids[b, t - 1]) if later else None))
    return names


def asking_places(batch: ReadBatch, asked: Sequence[tuple[int, Question]]) -> tuple[Tensor, list[Name]]:
    """Where a remembered value's next token is expected, (N, T), and the names those tokens have."""
    places = torch.zeros_like(batch.valid)
    names: list[Name] = []
    first = batch.ids.shape[1] - batch.values.shape[1]
    for n, k in (batch.values > 0).nonzero().tolist():
        window = asked[n][1]
        number = int(batch.values[n, k])
        question = (*window.earlier, window)[number - 1]
        if not question.value or question.kind == "unknown":
            continue
        places[n, first + k] = True
        later = k > 0 and int(batch.values[n, k - 1]) == number
        names.append((_about(question), int(batch.ids[n, first + k]) if later else None))
    return places, names
