"""The bank: told turns as hidden states, questions as keys and values, small talk, and ordinary prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.episodes.batches import expected_tokens, read_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.prefixes import Prefix, read_prefixes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.recorder import Recorder

DIFFICULTY = Difficulty(facts=2, long_values=0.25, corrections=0.12, unknown=0.12, others=0.08, lists=0.03)
"""Of one unit; many of them make a history."""
_PHRASINGS = 12
_BATCH = 32

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Asked:
    """A question about a unit.

    Attributes:
        topic: the relation it is about.
        kind: what sort it is.
        answer: tokens of the answer and its end.
        marks: for each of them, 1 where it is part of what had to be remembered.
        prefix: the question as it was put; None takes any of the relation's.
    """

    topic: str
    kind: str
    answer: tuple[int, ...]
    marks: tuple[int, ...]
    prefix: Prefix | None


@dataclass(frozen=True)
class Unit:
    """A few turns that belong together, as they enter the adapted layers.

    Attributes:
        hidden: (layers, n, hidden size), of the tokens that are written.
        values: (n,), true for tokens of a value that is asked about.
        topics: what they are about; units that share one are not put into the same history.
        asked: what is asked about them.
    """

    hidden: Tensor
    values: Tensor
    topics: frozenset[str]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Bank:
    """What cached steps draw from.

    Attributes:
        units: told facts.
        talk: small talk, as units without questions.
        questions: by relation, some ways to ask for it.
        ordinary: prompts on which memory is to change nothing, with the tokens of the frozen replies.
        asking: (layers, n, hidden size), tokens of questions and prompts before the one the answer comes after. In a
            chat they read; here they did not.
    """

    units: Sequence[Unit]
    talk: Sequence[Unit]
    questions: dict[str, list[Prefix]]
    ordinary: Sequence[tuple[Prefix, tuple[int, ...]]]
    asking: Tensor


def build_bank(
    passes: Passes,
    people: SyntheticPeople,
    ordinary: Sequence[Question],
    units: int,
    seed: int = 0,
    report: Report | None = None,
) -> Bank:
    """Run everything through the frozen backbone once.

    Args:
        passes: runs it.
        people: makes what is told.
        ordinary: prompts with the frozen replies.
        units: how many units of facts.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    rng = random.Random(f"bank-{seed}")
    say = report or (lambda _what, _share: None)
    episodes = [people.episode(rng, DIFFICULTY, "train") for _ in range(units)]
    found = _units(passes, episodes, lambda share: say("reading facts", share))
    talk = _units(passes, [Episode((turn,), ()) for turn in people.small_talk], lambda s: say("reading talk", s))
    texts = [(r.id, people.question(rng, r)) for r in people.relations for _ in range(_PHRASINGS)]
    prefixes = read_prefixes(passes, [t for _, t in texts], report=lambda s: say("reading questions", s))
    questions: dict[str, list[Prefix]] = {}
    for (topic, _), prefix in zip(texts, prefixes, strict=True):
        questions.setdefault(topic, []).append(prefix)
    prompts = read_prefixes(passes, [q.text for q in ordinary], report=lambda s: say("reading prompts", s))
    replies = [tuple(expected_tokens(passes.form, q)[0]) for q in ordinary]
    asking = _asking(passes, [t for _, t in texts] + [q.text for q in ordinary])
    return Bank(found, talk, questions, list(zip(prompts, replies, strict=True)), asking)


def _units(passes: Passes, episodes: Sequence[Episode], report: Callable[[float], None]) -> list[Unit]:
    order = sorted(range(len(episodes)), key=lambda i: episodes[i].length)
    units: dict[int, Unit] = {}
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = write_batch(passes.form, [episodes[i] for i in part])
        watching = Recorder(passes.memory, batch.written, torch.bfloat16)
        with torch.no_grad(), passes.memory.disabled(), watching:
            passes.run(batch)
        at = 0
        hidden = watching.stacked().cpu()
        own = _own_prefixes(passes, [episodes[i] for i in part])
        for row, i in enumerate(part):
            written = batch.written[row]
            count = int(written.sum())
            asked = tuple(_asked(passes, q, own.get(q.text)) for q in episodes[i].questions)
            units[i] = Unit(
                hidden[:, at : at + count].clone(),
                batch.values[row][written] > 0,
                frozenset(q.topic for q in episodes[i].questions if q.kind != "unknown"),
                asked,
            )
            at += count
        report((start + len(part)) / len(order))
    return [units[i] for i in range(len(episodes))]


def _asking(passes: Passes, texts: Sequence[str]) -> Tensor:
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = read_batch(passes.form, [(0, Question(text, "x")) for text in texts[start : start + _BATCH]])
        places = batch.valid.clone()
        places[:, -batch.targets.shape[1] :] &= batch.targets == -100
        with torch.no_grad(), Recorder(passes.memory, places, torch.bfloat16) as seen:
            passes.read(batch, None)
        parts.append(seen.stacked().cpu())
    return torch.cat(parts, dim=1)


def _own_prefixes(passes: Passes, episodes: Sequence[Episode]) -> dict[str, Prefix]:
    """Of the questions that the relation alone does not say: those about others, and about what was never told."""
    texts = sorted({q.text for e in episodes for q in e.questions if q.kind in ("other", "unknown")})
    return dict(zip(texts, read_prefixes(passes, texts), strict=True)) if texts else {}


def _asked(passes: Passes, question: Question, prefix: Prefix | None) -> Asked:
    answer, marks = expected_tokens(passes.form, question)
    return Asked(question.topic, question.kind, tuple(answer), tuple(marks), prefix)
