"""A generator of made-up people: facts told over several turns, small talk between, questions later.

What an episode draws from is split: values and phrasings of the `heldout` split are never used for training. The
relations and phrasings are in `synthetic.json`; the values are words of the tokenizer's own vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from deltamem.errors import DataError
from deltamem.training.episodes import Episode, Question, Turn

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Relation:
    """Something that can be told about a person.

    Attributes:
        id: its name.
        kind: ``name`` (capitalised values) or ``word``.
        statements: phrasings with ``{v}`` for the value; the last is held out.
        questions: phrasings of the question; the last is held out.
        answer: the reply, with ``{v}``.
    """

    id: str
    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Difficulty:
    """How hard an episode is.

    Attributes:
        pool: how many values per kind are in play.
        facts: the most facts in one history.
        relations: how many relations are in play.
        small_talk: the most turns of small talk among the facts.
        long_values: share of values made of two words.
        asked_before: share of histories in which one fact was asked about and answered already.
    """

    pool: int = 1 << 20
    facts: int = 1
    relations: int = 1 << 20
    small_talk: int = 0
    long_values: float = 0.0
    asked_before: float = 0.0


class SyntheticPeople:
    """Makes episodes, the same ones for the same random number generator.

    Args:
        tokenizer: its single-token words are the values.

    Raises:
        DataError: the tokenizer has too few such words.

    Attributes:
        small_talk: turns put between facts; a trainer adds some with the backbone's own replies.
        replies: the backbone's own replies to statements, by relation, with ``{v}`` for the value. Empty at first.
    """

    def __init__(self, tokenizer: Any) -> None:
        data = json.loads(resources.files("deltamem.training").joinpath("synthetic.json").read_text("utf-8"))
        self.relations = [
            Relation(r["id"], r["kind"], tuple(r["statements"]), tuple(r["questions"]), r["answer"])
            for r in data["relations"]
        ]
        self.acknowledgements: list[str] = data["acknowledgements"]
        self.small_talk = [Turn(user, reply) for user, reply in data["small_talk"]]
        self.ordinary: list[str] = data["ordinary"]
        self.replies: dict[str, list[str]] = {}
        self._values = {kind: _split_words(tokenizer, kind) for kind in ("name", "word")}
        if any(not words for splits in self._values.values() for words in splits.values()):
            raise DataError("this tokenizer has too few words that are single tokens for the built-in generator")

    def values(self, kind: str, split: Split) -> list[str]:
        """All values of a kind in a split."""
        return self._values[kind][split]

    def episode(self, rng: random.Random, difficulty: Difficulty, split: Split, facts: int | None = None) -> Episode:
        """One episode: up to `difficulty.facts` facts (or exactly `facts`), each asked about."""
        count = facts if facts is not None else rng.randint(1, difficulty.facts)
        relations = rng.sample(self.relations[: difficulty.relations], count)
        told: list[tuple[Relation, str]] = []
        taken: set[str] = set()
        for relation in relations:
            value = self._value(rng, relation.kind, difficulty, split, taken)
            taken.add(value)
            told.append((relation, value))
        history = [self._statement(rng, group, split) for group in _groups(rng, told)]
        if rng.random() < difficulty.asked_before:
            relation, value = rng.choice(told)
            history.append(Turn(_phrase(rng, relation.questions, split), relation.answer.format(v=value)))
        for _ in range(rng.randint(0, difficulty.small_talk) if difficulty.small_talk else 0):
            history.insert(rng.randint(0, len(history)), rng.choice(self.small_talk))
        questions = [
            Question(
                text=_phrase(rng, relation.questions, split),
                answer=relation.answer.format(v=value),
                value=value,
                topic=relation.id,
            )
            for relation, value in told
        ]
        return Episode(tuple(history), tuple(questions))

    def _value(self, rng: random.Random, kind: str, difficulty: Difficulty, split: Split, taken: set[str]) -> str:
        pool = self._values[kind][split][: difficulty.pool]
        words = 2 if rng.random() < difficulty.long_values else 1
        value = " ".join(rng.choice(pool) for _ in range(words))
        while value in taken:  # a longer one is free sooner or later, however small the pool
            value = f"{value} {rng.choice(pool)}"
        return value

    def _statement(self, rng: random.Random, facts: list[tuple[Relation, str]], split: Split) -> Turn:
        said = [_phrase(rng, relation.statements, split).format(v=value) for relation, value in facts]
        last, value = facts[-1]
        if self.replies.get(last.id) and rng.random() < 0.25:
            return Turn(" ".join(said), rng.choice(self.replies[last.id]).replace("{v}", value))
        return Turn(" ".join(said), rng.choice(self.acknowledgements))

    def learn_replies(self, reply: Callable[[list[str]], list[str]], rng: random.Random) -> list[Question]:
        """Ask the backbone for its own replies, to use them in histories from here on.

        Args:
            reply: gives replies to prompts.

        Returns:
            Ordinary prompts with the replies to them, which memory is to leave alone.
        """
        prompts = self.ordinary + [turn.user for turn in self.small_talk]
        ordinary = [Question(p, r) for p, r in zip(prompts, reply(prompts), strict=True) if r]
        told = []
        for relation in self.relations:
            for _ in range(2):
                value = rng.choice(self._values[relation.kind]["train"])
                told.append((relation, value, _phrase(rng, relation.statements, "train").format(v=value)))
        for (relation, value, _), said in zip(told, reply([t[2] for t in told]), strict=True):
            if said:
                self.replies.setdefault(relation.id, []).append(said.replace(value, "{v}"))
        self.small_talk = self.small_talk + [Turn(q.text, q.answer) for q in ordinary]
        return ordinary


def _phrase(rng: random.Random, phrasings: tuple[str, ...], split: Split) -> str:
    return phrasings[-1] if split == "heldout" else rng.choice(phrasings[:-1])


def _groups(rng: random.Random, facts: list[Any]) -> list[list[Any]]:
    """Facts spread over messages: mostly one a message, sometimes several."""
    groups: list[list[Any]] = []
    for fact in facts:
        if groups and rng.random() < 0.3:
            groups[-1].append(fact)
        else:
            groups.append([fact])
    return groups


_SHAPES = {"name": re.compile(r" [A-Z][a-z]{2,}"), "word": re.compile(r" [a-z]{4,}")}


def _split_words(tokenizer: Any, kind: str) -> dict[Split, list[str]]:
    words = []
    for index in range(len(tokenizer)):
        text = tokenizer.decode([index])
        if _SHAPES[kind].fullmatch(text):
            words.append(text.strip())
    # By hash, so that a word stays on its side whatever else changes, and the order says nothing.
    order = sorted(set(words), key=lambda w: hashlib.sha256(w.encode()).digest())
    cut = len(order) // 10
    return {"heldout": order[:cut], "train": order[cut:]}
