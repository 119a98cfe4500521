"""What a session tells whoever drives it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Ingested:
    """A part of the prompt has been read.

    Attributes:
        done: tokens read so far.
        total: tokens of the prompt.
    """

    done: int
    total: int


@dataclass(frozen=True)
class TextChunk:
    """A piece of the reply."""

    text: str


@dataclass(frozen=True)
class TurnFinished:
    """The turn is over and its writes are in the state.

    Attributes:
        reply: the whole reply.
        stopped: why it ended: the model's own "stop", the "length" limit, or the user ("interrupted").
        prompt_tokens: tokens read before the reply, template included.
        reply_tokens: tokens of the reply.
        written_tokens: tokens written into the state.
        prompt_seconds: time until the first token.
        reply_seconds: time after it.
        window_tokens: tokens in the context window now.
        context: size of the window.
        evicted: whether older turns left the window in this turn.
        state_change: norm of the change of the state over the norm of the state after, 0 where nothing was written.
    """

    reply: str
    stopped: Literal["stop", "length", "interrupted"]
    prompt_tokens: int
    reply_tokens: int
    written_tokens: int
    prompt_seconds: float
    reply_seconds: float
    window_tokens: int
    context: int
    evicted: bool
    state_change: float

    @property
    def tokens_per_second(self) -> float:
        """Speed of the reply, the first token left out."""
        return max(0, self.reply_tokens - 1) / self.reply_seconds if self.reply_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"tokens_per_second": round(self.tokens_per_second, 2)}


Event = Ingested | TextChunk | TurnFinished
