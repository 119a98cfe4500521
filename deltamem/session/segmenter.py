"""Opening and closing segments as a message goes by, for adapters that write once per segment (SSW)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from deltamem.memory import DeltaMemory
from deltamem.session.window import chunks

_SENTENCE_END = re.compile(r"[.!?…\n][\s\"')\]]*$")


class Segmenter:
    """Tells a memory where segments begin and end within one message.

    Args:
        memory: whose segments; None for adapters that write token by token, where this does nothing.
        tokenizer: to see where sentences end.
        chunk: most tokens in a call.
    """

    def __init__(self, memory: DeltaMemory | None, tokenizer: Any, chunk: int) -> None:
        self._memory, self._tokenizer, self._chunk = memory, tokenizer, chunk
        self._sentences = memory is not None and memory.config.memory_write_granularity == "sentence_mean"
        self._open = False

    def split(self, ids: list[int]) -> Iterator[list[int]]:
        """A message in pieces for one call each; a piece never crosses the end of a sentence where those count."""
        if not self._sentences:
            yield from chunks(ids, self._chunk)
            return
        sentence: list[int] = []
        for token in ids:
            sentence.append(token)
            if self._ends(token):
                yield from chunks(sentence, self._chunk)
                sentence = []
        yield from chunks(sentence, self._chunk)

    def begin(self) -> None:
        """A message begins."""
        if self._memory is not None and not self._open:
            self._memory.open_segment()
            self._open = True

    def fed(self, ids: list[int]) -> None:
        """These tokens of the message went in."""
        if self._sentences and self._memory is not None and ids and self._ends(ids[-1]):
            self._memory.close_segment()
            self._memory.open_segment()

    def end(self) -> None:
        """The message is over."""
        if self._memory is not None and self._open:
            self._memory.close_segment()
            self._open = False

    def _ends(self, token: int) -> bool:
        return _SENTENCE_END.search(self._tokenizer.decode([token])) is not None
