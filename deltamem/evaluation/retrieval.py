"""BM25 over past turns: what people use today in place of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltamem.episodes.episode import Turn
from deltamem.errors import MissingExtraError


class TurnIndex:
    """Finds the turns of one conversation that are nearest to a question.

    Args:
        turns: the conversation.

    Raises:
        MissingExtraError: bm25s is not installed.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        try:
            import bm25s
            import snowballstemmer
        except ImportError:
            raise MissingExtraError("retrieval", "eval") from None
        stemmer = snowballstemmer.stemmer("english")
        self._bm25s: Any = bm25s
        self._stem = stemmer.stemWords
        self._count = len(turns)
        self._index: Any = None
        if turns:
            self._index = bm25s.BM25()
            self._index.index(self._words([f"{t.user} {t.reply}" for t in turns]), show_progress=False)

    def _words(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", stemmer=self._stem, return_ids=False, show_progress=False)

    def best(self, question: str, count: int) -> list[int]:
        """Indices of the `count` best turns, the best first; those that share no word with it are left out."""
        words = self._words([question])
        if self._index is None or not words[0]:
            return []
        found, scores = self._index.retrieve(words, k=min(count, self._count), show_progress=False)
        return [int(i) for i, score in zip(found[0], scores[0], strict=True) if score > 0]
