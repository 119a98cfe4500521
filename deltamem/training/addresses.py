"""Hidden states gathered during one training step, for the losses on keys and gates."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from deltamem.episodes.batches import ReadBatch, WriteBatch
from deltamem.episodes.episode import Episode, Question
from deltamem.memory import DeltaMemory
from deltamem.training.addressing import AddressingLoss, Places, addressing_loss, classes
from deltamem.training.fitting import stacked_weights
from deltamem.training.recorder import Name, Recorder, asking_places, told_names
from deltamem.training.team import Team
from deltamem.training.warm_start import delta_layers

_EVERY = 4
"""Of the tokens that neither tell nor ask, one in so many is looked at."""


class Addresses:
    """Gathers what enters the adapted layers while histories are written and questions are read.

    Args:
        memory: whose layers are watched.
    """

    def __init__(self, memory: DeltaMemory) -> None:
        self._memory = memory
        self._states: dict[str, list[Tensor]] = {}
        self._names: dict[str, list[Name]] = {"told": [], "asking": []}

    @contextmanager
    def told(self, batch: WriteBatch, episodes: Sequence[Episode]) -> Iterator[None]:
        """While a batch of histories is written."""
        places = batch.values > 0
        self._names["told"] += told_names(batch, episodes)
        with self._record("told", places), self._record("other_written", _sample(batch.written & ~places)):
            yield

    @contextmanager
    def asking(self, batch: ReadBatch, asked: Sequence[tuple[int, Question]]) -> Iterator[None]:
        """While a batch of questions is read."""
        places, names = asking_places(batch, asked)
        self._names["asking"] += names
        with self._record("asking", places), self._record("other_read", _sample(batch.valid & ~places)):
            yield

    @contextmanager
    def idle(self, batch: ReadBatch) -> Iterator[None]:
        """While something is read that has nothing to do with what was told."""
        places = _sample(batch.valid)
        with self._record("other_read", places), self._record("idle", places):
            yield

    @contextmanager
    def _record(self, kind: str, places: Tensor) -> Iterator[None]:
        with Recorder(self._memory, places) as seen:
            yield
        self._states.setdefault(kind, []).append(seen.stacked())

    def merge(self, team: Team) -> None:
        """Put together what all processes have gathered, in the same order everywhere."""
        states, names = {k: torch.cat(v, dim=1).cpu() for k, v in self._states.items()}, self._names
        shared = team.gather((states, names))
        device = self._memory.parameters()[0].device
        kinds = ("told", "other_written", "asking", "other_read", "idle")
        self._states = {k: [s[k].to(device) for s, _ in shared if k in s] for k in kinds}
        self._names = {k: [name for _, n in shared for name in n[k]] for k in ("told", "asking")}

    def loss(self) -> AddressingLoss | None:
        """The loss over everything gathered; None where nothing was told that is asked for."""
        joined = {kind: torch.cat(parts, dim=1) for kind, parts in self._states.items() if parts}
        if not joined.keys() >= {"told", "other_written", "asking", "other_read"}:
            return None
        numbers: dict[Hashable, int] = {}
        told, asking = (classes(self._names[k], numbers).to(joined[k].device) for k in ("told", "asking"))
        if not torch.isin(asking, told).any() or len(torch.unique(told)) < 2:
            return None
        return addressing_loss(
            stacked_weights(self._memory),
            Places(joined["told"], told, joined["asking"], asking, joined["other_written"], joined["other_read"]),
        )

    def gates(self) -> Tensor:
        """Logits of the write gates at the tokens that were written, those of values and some of the others."""
        written = torch.cat([*self._states["told"], *self._states["other_written"]], dim=1)
        return stacked_weights(self._memory).gates(written)

    def reading(self) -> Tensor | None:
        """How far read gates stand open, (L, N, H), where nothing is to be read; None where there are none."""
        if not self._memory.config.read_gate or not self._states.get("idle"):
            return None
        idle = torch.cat(self._states["idle"], dim=1)
        return torch.stack([layer.read_gates(x) for layer, x in zip(delta_layers(self._memory), idle, strict=True)])


def _sample(places: Tensor) -> Tensor:
    """One in `_EVERY` of each row's places, whatever else is in the batch."""
    return places & (places.long().cumsum(-1) % _EVERY == 0)
