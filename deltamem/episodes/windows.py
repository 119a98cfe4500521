"""What stands before a question in its window."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question, Turn, in_window

_LATEST = 8
"""Turns of a chat that stand in a window, at most."""


def windows(
    rng: random.Random,
    questions: Sequence[Question],
    difficulty: Difficulty,
    small_talk: Sequence[Turn],
    chat: Sequence[Turn] = (),
) -> list[Question]:
    """Questions one after another in one window, now and then with a turn of small talk before them, or a whole chat.

    Args:
        rng: decides everything.
        questions: each asked once.
        difficulty: says how often.
        small_talk: turns that tell nothing.
        chat: what was told, with the replies.
    """
    left = list(questions)
    if difficulty.earlier:
        rng.shuffle(left)
    made: list[Question] = []
    while left:
        before: list[Question] = []
        if difficulty.earlier and rng.random() < difficulty.earlier:
            before = [left.pop() for _ in range(min(len(left) - 1, rng.choice((0, 1, 1, 2))))]
            if not before or rng.random() < 0.2:
                turn = rng.choice(small_talk)
                before.insert(0, Question(turn.user, turn.reply, kind="ordinary"))
        if difficulty.one_chat and rng.random() < difficulty.one_chat:
            first = next((q for q in before if q.kind != "ordinary"), left[-1])
            before = [*in_window(_up_to(first, chat)), *before]
        made.append(replace(left.pop(), earlier=tuple(before)))
    return made if difficulty.earlier else made[::-1]


def _up_to(question: Question, chat: Sequence[Turn]) -> Sequence[Turn]:
    """Turns of a chat before a question, or before the statement that it is."""
    said = [turn.user for turn in chat]
    end = said.index(question.text) if question.text in said else len(said)
    return chat[max(0, end - _LATEST) : end]
