"""What an evaluation asks, and what it counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deltamem.episodes.episode import Turn


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: its name, unique in the task.
        conversation: the history it is about, a key of `Task.histories`.
        question: what is asked.
        answers: what counts as right; several are alternatives, none means that it cannot be known.
        value: the part of the answer that matters, where the task tells it apart.
        wrong: what must not be named in the reply.
        labels: what figures can be broken down by.
        earlier: turns that stand right before it in its window, in every condition; they are written nowhere.
    """

    id: str
    conversation: str
    question: str
    answers: tuple[str, ...]
    value: str = ""
    wrong: tuple[str, ...] = ()
    labels: Mapping[str, str | int] = field(default_factory=dict)
    earlier: tuple[Turn, ...] = ()


Scorer = Callable[[Item, str], dict[str, float]]
"""Metrics of a reply, each between 0 and 1."""


@dataclass(frozen=True)
class Task:
    """Questions with the conversations they are about.

    Attributes:
        name: what it is called.
        histories: turns by conversation.
        items: the questions.
        score: gives a reply its metrics.
        metrics: their names, the first one heads the table.
        slices: combinations of labels that get rows of their own.
        max_tokens: longest reply.
        instruction: put before the question in every condition, e.g. to ask for a short answer.
    """

    name: str
    histories: Mapping[str, Sequence[Turn]]
    items: Sequence[Item]
    score: Scorer
    metrics: tuple[str, ...]
    slices: tuple[tuple[str, ...], ...] = ()
    max_tokens: int = 24
    instruction: str = ""

    def limited(self, count: int | None) -> Task:
        """The task with `count` items, spread evenly over all of them."""
        if count is None or count >= len(self.items):
            return self
        items = [self.items[i * len(self.items) // count] for i in range(count)]
        kept = {item.conversation for item in items}
        # Another conversation's state is a condition, so one more is needed where only one is asked about.
        if len(kept) == 1:
            kept |= set(list(self.histories)[:2])
        histories = {name: turns for name, turns in self.histories.items() if name in kept}
        return Task(
            self.name,
            histories,
            items,
            self.score,
            self.metrics,
            self.slices,
            self.max_tokens,
            self.instruction,
        )
