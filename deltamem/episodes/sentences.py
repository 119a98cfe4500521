"""Two statements in one sentence, as people tell things: "My cat is called Misty and I work as a nurse."."""

from __future__ import annotations

import re

_MORE = re.compile(r"[.!?:] ")
_ALWAYS_LARGE = re.compile(r"I\b")


def in_one_sentence(first: str, second: str, name: bool, between: str = " and ") -> str | None:
    """Both in one sentence; None where one of them is more than a sentence already.

    Args:
        first: ends with a full stop.
        second: follows it.
        name: the second begins with a name or another value, which stays as it is.
        between: what stands between them.
    """
    if not first.endswith(".") or _MORE.search(first) or _MORE.search(second):
        return None
    if not name and not _ALWAYS_LARGE.match(second):
        second = second[:1].lower() + second[1:]
    return first[:-1] + between + second
