"""Episodes: what is told, and what is asked about it afterwards from memory alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from deltamem.errors import DataError


class Turn(NamedTuple):
    """A user's message and the reply to it; both are written into the state."""

    user: str
    reply: str


@dataclass(frozen=True)
class Question:
    """A question put in a fresh context, with the state as the only trace of the history.

    Attributes:
        text: the question.
        answer: the reply that is expected.
        value: the part of the answer that had to be remembered; None weighs all of it alike, "" none of it.
        also: other parts of it that had to be remembered.
        topic: what it is about, e.g. a relation's name.
        owner: whose it is, by name; "" for the user's own.
        kind: what sort of question it is, for figures apart.
        given: words the answer begins with that are put there, not expected.
        earlier: what was asked before it in the same window. Their answers are learnt too, but for those of
            kind ``ordinary``.
    """

    text: str
    answer: str
    value: str | None = None
    topic: str = ""
    kind: str = "recall"
    earlier: tuple[Question, ...] = ()
    given: str = ""
    also: tuple[str, ...] = ()
    owner: str = ""

    @property
    def length(self) -> int:
        """Characters in its window."""
        return sum(len(q.text) + len(q.answer) for q in (*self.earlier, self))


def in_window(turns: Iterable[Turn]) -> tuple[Question, ...]:
    """Turns as they stand before a question in its window, where nothing of them is learnt."""
    return tuple(Question(turn.user, turn.reply, kind="ordinary") for turn in turns)


@dataclass(frozen=True)
class Episode:
    """One training or evaluation example.

    Attributes:
        history: the turns that are written, in order.
        questions: what is asked afterwards, each apart from the others.
        where: the file and line it is from, where it is from a file.
        breaks: numbers of turns at which a new session begins, with nothing in the window but the opening.
    """

    history: tuple[Turn, ...]
    questions: tuple[Question, ...]
    where: str = field(default="", compare=False)
    breaks: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Characters in the history."""
        return sum(len(turn.user) + len(turn.reply) for turn in self.history)

    @property
    def sessions(self) -> list[tuple[Turn, ...]]:
        """The history cut at its breaks."""
        edges = [0, *self.breaks, len(self.history)]
        return [self.history[a:b] for a, b in pairwise(edges)]

    @property
    def asked(self) -> tuple[Question, ...]:
        """All questions, those that stand before others in their window included."""
        return tuple(q for question in self.questions for q in (*question.earlier, question))


def load_episodes(path: str | Path) -> list[Episode]:
    """Read chats from JSON lines.

    A line holds ``{"messages": [{"role", "content"}, ...]}``: everything before the last user message is
    written, that message is asked, and the reply after it is expected.

    Raises:
        DataError: a line cannot be used; the message names the file and the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    episodes = list(_parse(path, lines))
    if not episodes:
        raise DataError(f"{path} holds no episodes")
    return episodes


def _parse(path: str | Path, lines: list[str]) -> Iterator[Episode]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: not JSON") from None
        messages = data.get("messages") if isinstance(data, dict) else None
        if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
            raise DataError(f'{where}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
        said = [m for m in messages if m["role"] != "system"]
        if len(said) < 4 or said[-1]["role"] != "assistant" or said[-2]["role"] != "user":
            raise DataError(f"{where}: needs at least two turns and must end with a question and its answer")
        if any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(said)):
            raise DataError(f"{where}: user and assistant must take turns, the user first")
        history = tuple(
            Turn(user["content"], reply["content"]) for user, reply in zip(said[:-2:2], said[1:-2:2], strict=True)
        )
        yield Episode(history, (Question(said[-2]["content"], said[-1]["content"]),), where)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
        and bool(message["content"])
    )
