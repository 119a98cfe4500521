"""Free-running recall on held-out episodes: the reply is generated, then compared."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deltamem.training.batches import write_batch
from deltamem.training.episodes import Episode, Question
from deltamem.training.passes import Passes
from deltamem.training.synthetic import Difficulty, Split, SyntheticPeople


@dataclass(frozen=True)
class RecallScore:
    """How often questions were answered right.

    Attributes:
        asked: number of questions.
        exact: share of replies that are the expected answer, letter case and end punctuation aside.
        named: share of replies in which the value stands as a word and no other told value does.
        chance: what picking one of the told values at random would name.
    """

    asked: int
    exact: float
    named: float
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def heldout_episodes(
    people: SyntheticPeople, facts: int, count: int, split: Split = "heldout", seed: int = 1
) -> list[Episode]:
    """Evaluation episodes with exactly `facts` facts: values and phrasings that training never saw."""
    rng = random.Random(f"recall-{seed}-{facts}-{split}")
    return [people.episode(rng, Difficulty(), split, facts=facts) for _ in range(count)]


def score_recall(
    passes: Passes, episodes: Sequence[Episode], frozen: bool = False, batch: int = 16, max_tokens: int = 20
) -> tuple[RecallScore, list[dict[str, str]]]:
    """Ask every question of every episode from memory alone (`frozen`: of the backbone without memory).

    Returns:
        The score, and each question with its expected answer and reply.
    """
    replies: list[dict[str, str]] = []
    exact = named = 0
    chance = 0.0
    for start in range(0, len(episodes), batch):
        part = episodes[start : start + batch]
        asked: list[tuple[int, Question]] = [(i, q) for i, e in enumerate(part) for q in e.questions]
        state = None
        if not frozen:
            state = passes.write(write_batch(passes.form, part)).clone().select([i for i, _ in asked])
        for (i, question), reply in zip(
            asked, passes.reply([q.text for _, q in asked], state, max_tokens), strict=True
        ):
            others = [q.value for q in part[i].questions if q.value and q is not question]
            exact += _plain(reply) == _plain(question.answer)
            named += _names(reply, question.value or question.answer) and not any(_names(reply, o) for o in others)
            chance += 1 / len(part[i].questions)
            replies.append({"question": question.text, "expected": question.answer, "reply": reply})
    total = len(replies)
    return RecallScore(total, exact / total, named / total, chance / total), replies


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!?")


def _names(reply: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", reply, re.IGNORECASE) is not None
