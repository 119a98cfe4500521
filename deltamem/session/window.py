"""The context window: what the KV cache holds, within a budget.

The window is the opening (system prompt) and the most recent tokens of the conversation. When it would overflow, the
oldest turns leave and the cache is rebuilt without writing, down to half the budget so that this happens seldom. What
they wrote stays in the state. The opening is run by the frozen backbone: its keys and values then depend on neither
the state nor the profile, exactly as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from deltamem.session.growing_cache import GrowingCache
from deltamem.session.plain_cache import PlainCache
from deltamem.session.recorded import Direction, RecordedTokens

CHUNK = 256
"""Tokens per call while reading a prompt: bounds the memory of a call and lets a user interrupt."""

Mode = Callable[[Tensor | None, Tensor], AbstractContextManager[None]]
"""Given which tokens of a call are to be written (1, T), or None for none, and which belong to a reply: its mode."""


class ContextWindow:
    """Keys and values of the recent conversation.

    Args:
        model: the backbone.
        opening: token ids of the system prompt and first user header.
        following: token ids with which every later turn begins.
        budget: most tokens held, the opening included.
        frozen: makes the mode in which the opening is run.
        recorded: replays the tokens of replies; None runs them as everything else.
    """

    def __init__(
        self,
        model: Any,
        opening: list[int],
        following: list[int],
        budget: int,
        frozen: Callable[[], AbstractContextManager[None]],
        recorded: RecordedTokens | None = None,
    ) -> None:
        self.model, self.opening, self.following, self.budget, self.frozen = model, opening, following, budget, frozen
        self.chunk = max(1, min(CHUNK, budget // 4))
        self.turns: list[list[int]] = []  # token ids by turn; the last is the current one
        self._cache: PlainCache | GrowingCache | None = None
        self._recorded = recorded
        self._device = next(model.parameters()).device

    def __len__(self) -> int:
        return len(self.opening) + sum(map(len, self.turns))

    @property
    def ids(self) -> list[int]:
        """All token ids in the window."""
        return self.opening + [token for turn in self.turns for token in turn]

    def copy_turns(self) -> list[list[int]]:
        """The tokens held, to go back to with `restore`."""
        return [list(turn) for turn in self.turns]

    def restore(self, turns: list[list[int]]) -> None:
        """Hold other tokens. Where they are how the present ones begin, the cache is cut back, else rebuilt."""
        kept, present = ([token for turn in all_turns for token in turn] for all_turns in (turns, self.turns))
        self.turns = [list(turn) for turn in turns]
        if self._cache is None or present[: len(kept)] != kept or not self._cache.cut(len(self.opening) + len(kept)):
            self.invalidate()

    def invalidate(self) -> None:
        """Forget the cache: what it holds was computed with another state, mode or text."""
        self._cache = None

    def begin_turn(self) -> None:
        """Tokens fed from now on belong to a new turn."""
        self.turns.append([])

    def room(self) -> int:
        """Tokens that can be fed before older ones must leave."""
        return self.budget - len(self)

    def make_room(self, wanted: int) -> bool:
        """Drop old tokens until `wanted` fit; whole turns first, then the head of the current one.

        Returns:
            Whether anything left.
        """
        if self.room() >= wanted:
            return False
        target = max(0, min(self.budget // 2, self.budget - wanted) - len(self.opening))
        while len(self.turns) > 1 and sum(map(len, self.turns)) > target:
            self.turns.pop(0)
        first = self.turns[0] if self.turns else []
        if first[: len(self.following)] == self.following:
            del first[: len(self.following)]  # the opening ends with a user header already
        if self.turns and len(self.turns[0]) > target:
            current = self.turns[-1]
            del current[: len(current) - target]
        self.invalidate()
        return True

    def feed(
        self, ids: list[int], written: list[bool], reads: list[bool], mode: Mode, direction: Direction | None = None
    ) -> Tensor:
        """Run the next tokens of the current turn in one call.

        Args:
            ids: token ids.
            written: which of them are to be written into the state.
            reads: which of them belong to a reply, or come just before one.
            mode: makes the mode of the call.
            direction: what a single token of a reply does with the memory, where it may be replayed.

        Returns:
            Logits (1, vocabulary) after the last token.
        """
        self._ensure(mode)
        logits = None
        if self._recorded is not None and direction is not None and isinstance(self._cache, GrowingCache):
            logits = self._recorded.feed(ids[0], self._cache, direction)
        if logits is None:
            logits = self._run(ids, mode(torch.tensor([written]) if any(written) else None, torch.tensor([reads])))
        self.turns[-1].extend(ids)
        return logits

    def _ensure(self, mode: Mode) -> None:
        """Build the cache where there is none: the opening frozen, the rest read without writing."""
        if self._cache is None:
            replayed = self._recorded is not None
            self._cache = GrowingCache(self.model, self.budget) if replayed else PlainCache(self.model)
            self._run(self.opening, self.frozen())
            kept = [token for turn in self.turns for token in turn]
            for part in chunks(kept, self.chunk):
                # Which of them were replies is not kept: they are read as what was said is.
                self._run(part, mode(None, torch.zeros(1, len(part), dtype=torch.bool)))

    def _run(self, ids: list[int], mode: AbstractContextManager[None]) -> Tensor:
        assert self._cache is not None
        self._cache.make_room(len(ids))
        with mode:
            out = self.model(
                input_ids=torch.tensor([ids], device=self._device),
                past_key_values=self._cache.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache.fed(len(ids))
        logits: Tensor = out.logits[:, -1]
        return logits


def chunks(ids: list[int], size: int) -> Iterator[list[int]]:
    """A list in pieces of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
