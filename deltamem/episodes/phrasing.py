"""Putting facts into words: statements, questions, and the replies that are expected."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question, Turn
from deltamem.episodes.relations import Fact
from deltamem.episodes.sentences import in_one_sentence
from deltamem.episodes.words import Split

_PAUSE = "..."
"""Stands where a value is not known."""
_BETWEEN = (" and ", ", and ")
"""What stands between two statements in one sentence."""


class Phrasing:
    """Phrases facts, in the same words for the same random number generator.

    Args:
        data: of `data/relations.json`.
        acknowledgements: replies to statements that say nothing back.

    Attributes:
        acknowledgements: those.
        corrections: ways to correct something, with ``{s}`` for a statement.
        unknown: says that something is not known.
        replies: the backbone's own replies to statements, by relation, with ``{v}`` for the value. Empty at first.
    """

    def __init__(self, data: dict[str, Any], acknowledgements: Sequence[str]) -> None:
        self.acknowledgements = acknowledgements
        self.corrections: list[str] = data["corrections"]
        self.unknown: str = data["unknown"]
        self.replies: dict[str, list[str]] = {}
        self._noted: str = data["noted"]
        self._around: dict[str, list[str]] = {
            k: data[k] for k in ("statement_leads", "statement_tails", "question_leads", "question_tails")
        }

    def noted(self, facts: Sequence[Fact]) -> str:
        """The reply that says facts back."""
        return self._noted.format(a=" ".join(fact.answer for fact in facts))

    def noted_up_to(self, begun: str) -> str:
        """What that begins with, where an answer begins so."""
        return self._noted.format(a=begun)

    def statement(
        self, rng: random.Random, facts: list[Fact], split: Split, lead: str = "{s}", joined: float = 0.0
    ) -> Turn:
        """A message that tells facts, each after the first with chance `joined` in one sentence with that before it."""
        said: list[tuple[str, str]] = []
        for fact in facts:
            statement = fact.phrase(rng, fact.relation.statements, split).format(v=fact.value)
            around = self.around(rng, "statement", "{s}") if split == "train" else "{s}"
            if said and joined and rng.random() < joined:
                between = rng.choice(_BETWEEN) if split == "train" else _BETWEEN[0]
                name = statement.startswith((fact.value, fact.owner or fact.value))
                one = in_one_sentence(said[-1][1], statement, name, between)
                if one:
                    said[-1] = said[-1][0], one
                    continue
            said.append((around, statement))
        return Turn(
            " ".join(lead.format(s=around.format(s=statement)) for around, statement in said), self._reply(rng, facts)
        )

    def _reply(self, rng: random.Random, facts: list[Fact]) -> str:
        how = rng.random()
        if how < 0.3:
            return self.noted(facts)
        own = self.replies.get(facts[-1].relation.id)
        if own and how < 0.4:
            return rng.choice(own).replace("{v}", facts[-1].value)
        return rng.choice(self.acknowledgements)

    def question(self, rng: random.Random, fact: Fact, split: Split) -> str:
        """One way to ask for a fact."""
        question = fact.phrase(rng, fact.relation.questions, split)
        if split == "heldout":
            return question
        return self.around(rng, "question", question)

    def asked(self, rng: random.Random, fact: Fact, kind: str, difficulty: Difficulty, split: Split) -> Question:
        """A question and its answer. Of kind ``unknown``: the answer up to where the value would stand, and then that
        it is not known.

        What was told is looked for at that place, so it is the place where it shows that nothing was: before the first
        word of an answer it could be told apart in 70 % of cases, and no training made "I don't know" come first.
        """
        text, relation = self.question(rng, fact, split), fact.relation
        reworded = difficulty.reworded and rng.random() < difficulty.reworded
        answers = reworded and relation.other_answers
        answer, before = fact.reply(rng.choice(answers) if answers else relation.answer)
        value, given = fact.value, before if reworded else ""
        if kind == "unknown":
            answer, value = f"{before}{_PAUSE} {self.unknown}", _PAUSE
        return Question(text, answer, value, relation.id, kind, given=given, owner=fact.owner or "")

    def around(self, rng: random.Random, what: str, text: str) -> str:
        """The text, now and then with a few words before or after it."""
        lead = rng.choice(self._around[f"{what}_leads"]) if rng.random() < 0.25 else ""
        tail = rng.choice(self._around[f"{what}_tails"]) if rng.random() < 0.15 else ""
        return lead + text + tail
