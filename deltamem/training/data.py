"""Where episodes come from: the generator, one's own chats, passages with questions; and mixes of them by weight."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltamem.chat_format import ChatFormat
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn, load_episodes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.evaluation.histories import turn_tokens
from deltamem.evaluation.tasks.squad import HEARD, SHORT_ANSWER, squad_task

SYNTHETIC = "synthetic"


class Source(Protocol):
    """Gives episodes, the same ones for the same random numbers."""

    def episode(self, rng: random.Random, difficulty: Difficulty) -> Episode:
        """One episode; sources that have no difficulty pass over it."""
        ...


@dataclass(frozen=True)
class Made:
    """The generator's training split."""

    people: SyntheticPeople

    def episode(self, rng: random.Random, difficulty: Difficulty) -> Episode:
        """One made-up person."""
        return self.people.episode(rng, difficulty, "train")


@dataclass(frozen=True)
class Given:
    """Episodes read from a file."""

    episodes: Sequence[Episode]

    def episode(self, rng: random.Random, difficulty: Difficulty) -> Episode:
        """One of them."""
        return rng.choice(self.episodes)


@dataclass(frozen=True)
class Mix:
    """Sources with their weights.

    Attributes:
        sources: at least one.
        weights: how often each is drawn from, relative to the others.
        names: what a card says of them.
    """

    sources: Sequence[Source]
    weights: Sequence[float]
    names: Sequence[str]

    def episode(self, rng: random.Random, difficulty: Difficulty) -> Episode:
        """An episode from a source drawn by weight."""
        (source,) = rng.choices(self.sources, self.weights)
        return source.episode(rng, difficulty)


def parse_mix(specs: Sequence[str], people: SyntheticPeople, form: ChatFormat, limit: int | None) -> Mix:
    """Sources from ``synthetic:0.7``, ``chats.jsonl:0.3`` (chats) and ``train.json`` (SQuAD); no weight is 1.

    Args:
        specs: of the command line; none means the generator alone.
        people: the generator.
        form: lays out episodes, to find those that are too long.
        limit: most tokens of a window that the backbone takes; None for no limit.

    Raises:
        DataError: a file or weight can't be used; says which, and the line.
    """
    sources: list[Source] = []
    weights: list[float] = []
    names: list[str] = []
    for spec in specs or (SYNTHETIC,):
        name, weight = _split(spec)
        if name == SYNTHETIC:
            sources.append(Made(people))
        elif Path(name).suffix == ".json":
            sources.append(Given(_passages(Path(name), people)))
        else:
            sources.append(Given(_chats(Path(name), form, limit)))
        weights.append(weight)
        names.append(spec)
    return Mix(sources, weights, names)


def _split(spec: str) -> tuple[str, float]:
    name, colon, number = spec.rpartition(":")
    if not colon or Path(spec).exists():
        return spec, 1.0
    try:
        weight = float(number)
    except ValueError:
        return spec, 1.0  # a path with a colon in it; opening it will say so if there is none
    if not 0 < weight < float("inf"):
        raise DataError(f"--data {spec}: the weight must be above 0")
    return name, weight


def _chats(path: Path, form: ChatFormat, limit: int | None) -> list[Episode]:
    episodes = load_episodes(path)
    for episode in episodes:
        (question,) = episode.questions
        lengths = [turn_tokens(form, t) for t in (*episode.history, Turn(question.text, question.answer))]
        if max(lengths) > (limit or 0):
            raise DataError(
                f"{episode.where}: a turn of {max(lengths)} tokens is longer than the model takes ({limit})"
            )
    return episodes


def _passages(path: Path, people: SyntheticPeople, questions: int = 4) -> list[Episode]:
    """Paragraphs with some of their questions each."""
    task = squad_task(path)
    asked: dict[str, list[Question]] = {}
    for item in task.items:
        if item.answers:
            question = Question(f"{SHORT_ANSWER} {item.question}", item.answers[0], kind="passage")
        else:
            first = people.phrasing.unknown.split()[0]
            question = Question(f"{SHORT_ANSWER} {item.question}", people.phrasing.unknown, first, kind="unknown")
        asked.setdefault(item.conversation, []).append(question)
    episodes = []
    for name, found in asked.items():
        for at in range(0, len(found), questions):
            history = (Turn(task.histories[name][0].user, HEARD),)
            episodes.append(Episode(history, tuple(found[at : at + questions]), f"{path}, {name}"))
    return episodes
