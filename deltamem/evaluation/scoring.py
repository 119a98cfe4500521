"""Exact match and F1 as question answering measures them, and what counts as saying that one doesn't know."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNKNOWN = re.compile(
    r"\b(don't|do not|doesn't|does not|didn't|did not|can't|cannot|haven't|have not|not|no|never)\b.{0,40}"
    r"\b(know|knowledge|told|tell|say|said|mention|mentioned|information|remember|sure|aware|access|answerable)\b"
    r"|\bunknown\b|\bunanswerable\b|\bnot mentioned\b|\bno information\b",
    re.IGNORECASE,
)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (the SQuAD protocol)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(reply: str, answers: Iterable[str]) -> float:
    """1 when the reply is one of the answers, normalised."""
    return float(any(normalised(reply) == normalised(a) for a in answers))


def token_f1(reply: str, answer: str, words: Callable[[str], list[str]] | None = None) -> float:
    """Harmonic mean of precision and recall over words, normalised; `words` cuts them another way."""
    cut = words or (lambda text: normalised(text).split())
    said, wanted = cut(reply), cut(answer)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def best_f1(reply: str, answers: Iterable[str], words: Callable[[str], list[str]] | None = None) -> float:
    """The best F1 among the answers."""
    return max((token_f1(reply, a, words) for a in answers), default=0.0)


def names(reply: str, value: str) -> bool:
    """Whether a value stands in a reply as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", reply, re.IGNORECASE) is not None


def says_unknown(reply: str) -> bool:
    """Whether a reply says that the answer is not known."""
    return _UNKNOWN.search(reply) is not None
