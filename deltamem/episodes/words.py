"""Words to be remembered: those of a tokenizer's own vocabulary, split in two, and words nobody uses."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any, Literal, NamedTuple

Split = Literal["train", "heldout"]

_STARTS = ("b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "qu", "r",
           "s", "st", "t", "tr", "v", "w", "z")  # fmt: skip
_MIDDLES = ["a", "e", "i", "o", "u", "ai", "ea", "ou"]
_ENDS = ["", "", "l", "n", "r", "s", "k", "m", "th"]


def made_up(rng: random.Random, kind: str) -> str:
    """A word nobody uses, of two or three syllables: several tokens to any tokenizer."""
    word = "".join(rng.choice(_STARTS) + rng.choice(_MIDDLES) for _ in range(rng.choice((2, 2, 3)))) + rng.choice(_ENDS)
    return word.capitalize() if kind == "name" else word


_SHAPES = {"name": re.compile(r" [A-Z][a-z]{2,}"), "word": re.compile(r" [a-z]{4,}")}


def split_words(tokenizer: Any, kind: str) -> dict[Split, list[str]]:
    """A tokenizer's words of a kind (``name`` or ``word``) that are single tokens, a tenth of them held out."""
    words = [text.strip() for text in _pieces(tokenizer) if _SHAPES[kind].fullmatch(text)]
    # By hash, so that a word stays on its side whatever else changes, and the order says nothing.
    order = sorted(set(words), key=lambda w: hashlib.sha256(w.encode()).digest())
    cut = len(order) // 10
    return {"heldout": order[:cut], "train": order[cut:]}


class Beginnings(NamedTuple):
    """Text of a tokenizer's pieces that begin a word, and of those that go on one, the commonest first; and words that
    are not to come of them.
    """

    first: list[str]
    later: list[str]
    heldout: frozenset[str]

    def word(self, rng: random.Random) -> str:
        """A word of two to four of them. It may begin with a word that is one by itself, as "Misty" does."""
        count = rng.choices((1, 2, 3), (7, 2, 1))[0]
        # By the cube, as most of those that go on a word are rare ends of long ones.
        later = (self.later[int(len(self.later) * rng.random() ** 3)] for _ in range(count))
        word = rng.choice(self.first) + "".join(later)
        return word if word not in self.heldout else self.word(rng)


_BEGINS = {"name": re.compile(r" [A-Z][a-z]+"), "word": re.compile(r" [a-z]{2,}")}


def beginnings(tokenizer: Any, kind: str) -> Beginnings:
    """Pieces that words of a kind (``name`` or ``word``) can be put together from, none of them a held-out word."""
    pieces, text = told_pieces(tokenizer), _pieces(tokenizer)
    return Beginnings(
        [text[i].strip() for i in pieces.first if _BEGINS[kind].fullmatch(text[i])],
        [text[i] for i in pieces.later if re.fullmatch("[a-z]{1,6}", text[i])],
        frozenset(split_words(tokenizer, kind)["heldout"]),
    )


class Pieces(NamedTuple):
    """Token ids: of pieces that begin a word, and of those that go on one."""

    first: list[int]
    later: list[int]


def told_pieces(tokenizer: Any) -> Pieces:
    """A tokenizer's tokens with a letter or a digit in them, but for the words that are held out."""
    heldout = {f" {word}" for kind in _SHAPES for word in split_words(tokenizer, kind)["heldout"]}
    special = set(getattr(tokenizer, "all_special_ids", ()))
    kept = [
        (index, text)
        for index, text in enumerate(_pieces(tokenizer))
        if index not in special and text not in heldout and re.search("[A-Za-z0-9]", text)
    ]
    return Pieces([i for i, text in kept if text[0] == " "], [i for i, text in kept if text[0] != " "])


def _pieces(tokenizer: Any) -> list[str]:
    """The vocabulary as text. Decoding a token alone can lose the space before it, so its own mark for that is read."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return [tokenizer.decode([index]) for index in range(len(tokenizer))]
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [re.sub("^[\u2581\u0120]", " ", piece) if isinstance(piece, str) else "" for piece in pieces]
