"""A turn for which there was not enough memory: told as what it is, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deltamem.errors import BackboneError


def guard_memory(chat: Any, events: Iterator[Any]) -> Iterator[Any]:
    """A turn's events; where memory runs out, an error with advice. The session has taken the turn back by then."""
    from deltamem.backbones.exhausted import out_of_memory_advice, ran_out_of_memory

    try:
        yield from events
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        advice = out_of_memory_advice(chat.backbone.name, chat.backbone.device)
        raise BackboneError(advice + "; the turn was taken back") from None
