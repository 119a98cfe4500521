"""Text out of tokens while they arrive, whole characters only."""

from __future__ import annotations

from typing import Any


class Detokenizer:
    """Turns a growing list of tokens into pieces of text.

    A token may hold half a character, and a tokenizer may write a token differently after another one; so text is
    handed out as the difference of two decodings over a few recent tokens, and only when it ends in a whole
    character.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._anchor = 0  # where decoding starts
        self._shown = 0  # tokens whose text was handed out
        self.text = ""

    def add(self, token: int) -> str:
        """Take a token in; returns the text that became certain, maybe none."""
        self._ids.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """The rest, with a replacement mark for half a character."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decode(self._ids[self._anchor : self._shown])
        now = self._decode(self._ids[self._anchor :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not final):
            return ""
        self._anchor, self._shown = self._shown, len(self._ids)
        piece = now[len(before) :]
        self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
