"""The call for one token of a reply, recorded once on a GPU and replayed without Python in between.

A token on a GPU takes as long as Python takes to ask for it, layer after layer. Recorded, it is one request. What it
works on must stay where it is: the token, a static KV cache, the states, the logits and the write gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from deltamem.memory import DeltaMemory
from deltamem.session.growing_cache import GrowingCache

Direction = Literal["write", "read", "off"]
"""What a token of a reply does with the memory."""

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs some work a few times, and gives back what does it again."""

_WARM = 3
_ROUNDING = 0.03
"""Share of the length of all logits by which a token's may differ when it is replayed. In bfloat16 on an H200, with
random weights, single ones were further apart than 1 % of the largest in two of eight cases; those of another token
differ by far more than this.
"""


def record_on_gpu(work: Callable[[], None]) -> Callable[[], None]:
    """As a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM):  # what is compiled, tuned or allocated the first time is not to be recorded
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


@dataclass
class _Recording:
    again: Callable[[], None]
    logits: Tensor
    gates: Tensor | None


class RecordedTokens:
    """Replays single tokens of a session.

    Args:
        model: the backbone.
        memory: the memory attached to it; None for the frozen backbone.
        record: how; tests do without a GPU.

    Attributes:
        failure: why nothing is recorded any more, once it failed; tokens then go the ordinary way.
    """

    def __init__(self, model: Any, memory: DeltaMemory | None, record: Record = record_on_gpu) -> None:
        self._model, self._memory, self._record = model, memory, record
        self._token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        self._recordings: dict[Direction, _Recording] = {}
        self._of: tuple[Any, Tensor | None] = (None, None)
        self.failure: str | None = None

    def feed(self, token: int, cache: GrowingCache, direction: Direction) -> Tensor | None:
        """Run one token, which reads, and which writes where the direction says so.

        Returns:
            Logits (1, vocabulary) after it; None where it can't be recorded, and nothing was done.
        """
        if self.failure is not None:
            return None
        cache.make_room(1)
        states = self._memory.pin_state() if self._memory is not None else None
        if self._of[0] is not cache.cache or self._of[1] is not states:
            self._recordings, self._of = {}, (cache.cache, states)
        self._token.fill_(token)
        if direction not in self._recordings:
            try:
                self._recordings[direction] = self._recording(cache, states, direction)
            except RuntimeError as error:
                self.failure = str(error).strip().split("\n")[0] or type(error).__name__
                return None
        recording = self._recordings[direction]
        recording.again()
        cache.fed(1)
        if recording.gates is not None and self._memory is not None:
            self._memory.show_gates(recording.gates.clone())
        return recording.logits.clone()

    def _recording(self, cache: GrowingCache, states: Tensor | None, direction: Direction) -> _Recording:
        """Record, and compare with what was recorded; cache and states are as before afterwards.

        Raises:
            RuntimeError: it can't be recorded, or says something else.
        """
        before = states.clone() if states is not None else None
        lending = self._memory.lending if self._memory is not None else None
        lent = lending.copy() if lending is not None else None
        made = _Recording(lambda: None, torch.empty(0), None)

        def work() -> None:
            made.logits, made.gates = self._once(cache, direction)

        def back() -> None:
            cache.cut(cache.length)
            if states is not None and before is not None:
                states.copy_(before)
            if lending is not None and lent is not None:
                lending.put_back(lent)

        try:
            work()
            expected = made.logits.clone()
            back()
            made.again = self._record(work)
            back()
            made.again()
            apart = torch.linalg.vector_norm((made.logits - expected).float())
            if not apart <= _ROUNDING * torch.linalg.vector_norm(expected.float()):
                raise RuntimeError("a recorded token is not the same as the one before it was recorded")
        finally:
            back()
        return made

    def _once(self, cache: GrowingCache, direction: Direction) -> tuple[Tensor, Tensor | None]:
        inputs: dict[str, Any] = {
            "input_ids": self._token,
            "past_key_values": cache.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if self._memory is None:
            return self._model(**inputs).logits[:, -1], None
        modes: dict[str, Any] = {
            "write": self._memory.writing,
            "read": self._memory.reading,
            "off": self._memory.disabled,
        }
        gates: list[Tensor] = []
        with self._memory.tracing(lambda _, seen: gates.append(seen)), modes[direction]():
            logits: Tensor = self._model(**inputs).logits[:, -1]
        if direction == "write":
            self._memory.settle_state()
        return logits, torch.stack(gates) if gates else None
