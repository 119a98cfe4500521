"""A conversation: turns, the context window, sampling and the events a reply yields."""

from __future__ import annotations

from deltamem.session.chat import ChatSession, MemoryMode
from deltamem.session.events import Event, Ingested, TextChunk, TurnFinished
from deltamem.session.recorded import RecordedTokens
from deltamem.session.sampling import Sampling

__all__ = [
    "ChatSession",
    "Event",
    "Ingested",
    "MemoryMode",
    "RecordedTokens",
    "Sampling",
    "TextChunk",
    "TurnFinished",
]
