"""Recall of made-up facts about people: how many, how long ago, how new, corrected, other people's, never told."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.grouped import grouped
from deltamem.episodes.relations import Relation
from deltamem.episodes.sorts import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Split
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.scoring import exact_match, names, normalised, says_unknown, token_f1

FACTS = (1, 2, 4, 8, 16, 32)
DISTANCES = (0, 10, 50, 200)
PARTS = ("facts", "new values", "likely values", "unusual words", "distance", "held out", "kind", "statements")
_NOTED = "Got it."
"""How the reply to a statement begins."""
_ENDS = re.compile(r"[.!?]+(?:\s+|$)")
_EARLIER = (1, 2, 3)
"""Ordinary questions before one in its window."""
_PLAIN = 4
"""Facts told where something else is varied."""
_ASKED = 3
"""Times over that things are asked before they are asked."""
_EVERYDAY = Difficulty(unknown=1.0, natural=1.0, longer=0.4)
"""Values that one would expect, and words that tokenizers have in pieces among them."""
CLOSE = (
    ("dog", "cat"),
    ("puppy", "kitten"),
    ("rabbit", "hamster"),
    ("mother", "father"),
    ("sister", "brother"),
    ("son", "daughter"),
    ("wife", "husband"),
    ("uncle", "aunt"),
)
"""Relations that people tell together, and whose nouns a backbone takes for nearly the same."""
_NATURAL_UNKNOWN = Difficulty(unknown=1.0, natural=1.0)
_OTHERS_TOO = Difficulty(natural=0.5, others=1.0)
"""Some of what is told of friends is told of them by name."""
KINDS: dict[str, dict[str, Any]] = {
    "corrected": {"facts": 2, "difficulty": Difficulty(corrections=1.0)},
    "two people": {"facts": _PLAIN, "difficulty": Difficulty(others=1.0)},
    "list of two": {"facts": 2, "difficulty": Difficulty(lists=1.0), "of_kind": "word"},
    "several tokens": {"facts": 2, "difficulty": Difficulty(long_values=1.0)},
    "numbers": {"facts": 2, "numbers": True},
    "words and numbers": {"facts": _PLAIN, "difficulty": Difficulty(numbers=True)},
    "longer words": {"facts": 2, "difficulty": Difficulty(longer=1.0), "longer": True},
    "one sentence": {"facts": 2, "difficulty": Difficulty(together=1.0, joined=1.0)},
    "alike": {"facts": 2, "difficulty": Difficulty(natural=1.0), "alike": True},
    "close": {"facts": 2, "difficulty": Difficulty(natural=1.0), "pairs": CLOSE},
    "asked before": {"facts": _PLAIN, "difficulty": _EVERYDAY, "only": "recall", "asked": _ASKED},
    "asked before but never told": {"facts": _PLAIN, "difficulty": _EVERYDAY, "only": "unknown", "asked": _ASKED},
    "after ordinary talk": {"facts": _PLAIN, "difficulty": _EVERYDAY, "only": "recall", "earlier": True},
    "never told after ordinary talk": {"facts": _PLAIN, "difficulty": _EVERYDAY, "only": "unknown", "earlier": True},
    "never told": {"facts": _PLAIN, "difficulty": Difficulty(unknown=1.0), "only": "unknown"},
    "never told beside numbers": {
        "facts": _PLAIN,
        "difficulty": Difficulty(unknown=1.0, numbers=True),
        "only": "unknown",
    },
    "never told but alike": {"facts": 1, "difficulty": Difficulty(unknown=1.0), "only": "unknown", "alike": True},
    "never told but close": {"facts": 1, "difficulty": _NATURAL_UNKNOWN, "only": "unknown", "pairs": CLOSE},
    "relatives": {"facts": 2, "difficulty": _OTHERS_TOO, "relatives": "any"},
    "relatives never seen": {"facts": 2, "difficulty": Difficulty(natural=0.5), "relatives": "held out"},
    "relatives beside oneself": {"facts": 2, "difficulty": Difficulty(natural=0.5), "relatives": "beside"},
    "never told of relatives": {"facts": 1, "difficulty": _NATURAL_UNKNOWN, "only": "unknown", "relatives": "beside"},
}
"""The rows of the part `kind`; each is a part by itself too. Alike are relations that differ in a noun alone: a dog's
name was told and a yacht's, with values that one would expect, and both are asked for (close: a dog's and a cat's);
or the dog's alone was told, and the yacht's (the cat's) is asked for. Several tokens are two words, or a made-up
one; longer words are such as one would expect and tokenizers have in pieces, as "Pixie" and "Albuquerque"; numbers
are ages, years, codes, days and times, and of words and numbers there are about as many of each. Asked before is
what was asked and answered three times already, as was all else that was told, and something that was not: where the
backbone replies itself, a wrong reply may have made the next one worse. After ordinary talk is what is asked with
ordinary questions and their answers before it in its window. Relatives are what people close to one do and are ("My
sister lives in Oslo."), a friend by name now and then; never seen are those that training never hears of; beside
oneself is where the same was told of oneself ("I live in Rome."), and where one of the two alone was told the other is
asked for."""
STATEMENTS: dict[str, tuple[int, Difficulty]] = {
    "1 fact": (1, Difficulty(noted=1.0)),
    "2 facts": (2, Difficulty(noted=1.0, together=1.0)),
    "2 in one sentence": (2, Difficulty(noted=1.0, together=1.0, joined=1.0)),
    "3 facts": (3, Difficulty(noted=1.0, together=1.0)),
}
"""The rows of the part `statements`: how many facts a message tells, and how."""


def recall_task(
    tokenizer: Any,
    questions: int = 48,
    facts: Sequence[int] = FACTS,
    distances: Sequence[int] = DISTANCES,
    parts: Collection[str] = PARTS,
    seed: int = 0,
) -> Task:
    """About `questions` questions for every figure.

    All of them take values and phrasings that training never saw, but for the rows of `new values`, which take the
    values alone, and those of `held out` that say otherwise. Values are words drawn at random ("I live in Holmes."),
    and in the rows of `likely values` such as one would expect ("I live in Lisbon."), which training told of nothing
    that they fit: what a backbone expects is written, and read, differently. `unusual words` tells or asks for
    one fact in ways that are far from all others. `statements` asks nothing: the reply to a message that tells facts is
    to say them back.

    Args:
        tokenizer: the backbone's; its words are the values.
        questions: questions per figure, rounded up to whole conversations.
        facts: numbers of facts told.
        distances: turns of small talk between the last fact and the question, with 4 facts.
        parts: which breakdowns are asked for, of `PARTS` and `KINDS`.
        seed: of everything random.

    Raises:
        DataError: the tokenizer has too few words.
    """
    builder = _Builder(SyntheticPeople(tokenizer), questions, seed)
    for count in facts if "facts" in parts else ():
        builder.add({"facts": count}, count)
    for count in facts if "new values" in parts else ():
        builder.add({"new values": count}, count, split="train", values="heldout")
    for count in facts if "likely values" in parts else ():
        builder.add({"likely values": count}, count, Difficulty(natural=1.0))
    if "unusual words" in parts:
        for ways, how in (("questions", "asked"), ("statements", "told")):
            builder.add({"unusual words": how}, 1, among=builder.people.unusual[ways])
    for distance in distances if "distance" in parts else ():
        builder.add({"distance": distance}, _PLAIN, distance=distance)
    if "held out" in parts:
        builder.add({"held out": "values and phrasings"}, _PLAIN)
        builder.add({"held out": "nothing"}, _PLAIN, split="train", values="train")
        builder.add({"held out": "values"}, _PLAIN, split="train", values="heldout")
        builder.add({"held out": "phrasings"}, _PLAIN, values="train")
        builder.add({"held out": "relations too"}, _PLAIN, among=builder.people.heldout_relations)
    for kind, what in KINDS.items():
        if "kind" in parts or kind in parts:
            builder.add({"kind": kind}, **what)
    for statement, (count, how_told) in STATEMENTS.items() if "statements" in parts else ():
        builder.add_statements({"statements": statement}, count, how_told)
    shown = {"kind" if part in KINDS else part for part in parts}
    return Task(
        name="recall",
        histories=builder.histories,
        items=builder.items,
        score=score,
        metrics=("named", "exact", "f1"),
        slices=tuple((part,) for part in PARTS if part in shown),
        max_tokens=24,
    )


def score(item: Item, reply: str) -> dict[str, float]:
    """`named`: the value stands in the reply and no other that was told; `exact`: the reply is the expected one; `f1`.

    Where nothing was told, all three ask whether the reply says so. Where a statement is replied to, `named` asks
    whether any of what it tells is said back in a sentence that says nothing else.
    """
    if "statements" in item.labels:
        back = {said.removeprefix(f"{normalised(_NOTED)} ") for said in _sentences(reply)}
        expected = {said for answer in item.answers for said in _sentences(answer.removeprefix(_NOTED))}
        return {"named": float(bool(back & expected)), **_whole(item, reply)}
    if not item.value:
        unknown = float(says_unknown(reply))
        return {"named": unknown, "exact": unknown, "f1": unknown}
    parts = item.value.split(" and ")
    # "You work for Holmes." is right where "work" was told as well, of something else.
    wrong = [told for told in item.wrong if not names(item.answers[0], told)]
    named = all(names(reply, part) for part in parts) and not any(names(reply, told) for told in wrong)
    return {"named": float(named), **_whole(item, reply)}


def _whole(item: Item, reply: str) -> dict[str, float]:
    return {"exact": exact_match(reply, item.answers), "f1": token_f1(reply, item.answers[0])}


def _sentences(text: str) -> set[str]:
    return {normalised(part) for part in _ENDS.split(text) if part.strip()}


class _Builder:
    def __init__(self, people: SyntheticPeople, questions: int, seed: int) -> None:
        self.people, self._questions, self._seed = people, questions, seed
        sorts = grouped((sort_of(relation.id), relation) for relation in people.families)
        self._alike = [sort for sort in sorts.values() if len(sort) > 1]
        self._by_id = {relation.id: relation for relation in people.families}
        own = {relation.id: relation for relation in (*people.relations, *people.singles, *people.numbers)}
        self._beside = [(own[relation.way], relation) for relation in people.relatives if relation.way in own]
        self.histories: dict[str, Sequence[Turn]] = {}
        self.items: list[Item] = []

    def add(
        self,
        labels: dict[str, str | int],
        facts: int,
        difficulty: Difficulty | None = None,
        split: Split = "heldout",
        values: Split | None = None,
        among: Sequence[Relation] | None = None,
        distance: int = 0,
        only: str = "",
        alike: bool = False,
        of_kind: str = "",
        longer: bool = False,
        numbers: bool = False,
        pairs: Sequence[tuple[str, str]] = (),
        asked: int = 0,
        earlier: bool = False,
        relatives: str = "",
    ) -> None:
        """Conversations for one figure."""
        name, rng = self._named(labels)
        if of_kind:
            among = [r for r in self.people.relations if r.kind == of_kind]
        if numbers:
            among = self.people.numbers
        if relatives:
            among = self.people.heldout_relatives if relatives == "held out" else self.people.relatives
        if longer:
            among = [r for r in self.people.relations if r.id in self.people.values.longer]
        per_conversation = 1 if only == "unknown" else facts
        for number in range(-(-self._questions // per_conversation)):
            some = rng.sample(rng.choice(self._alike), 2) if alike else among
            if pairs:
                some = [self._by_id[id] for id in rng.choice(pairs)]
            if relatives == "beside":
                some = rng.choice(self._beside)
            episode = self.people.episode(rng, difficulty or Difficulty(), split, facts, some, values)
            conversation = f"{name}, {number}"
            before = [Turn(q.text, q.answer) for q in episode.questions] * asked
            self.histories[conversation] = [*episode.history, *self._small_talk(rng, distance), *before]
            for i, question in enumerate(episode.questions):
                if only and question.kind != only:
                    continue
                item = _item(f"{conversation}, {i}", conversation, episode, question, labels)
                if earlier:
                    item = replace(item, earlier=tuple(rng.sample(self.people.answered, rng.choice(_EARLIER))))
                self.items.append(item)

    def add_statements(self, labels: dict[str, str | int], facts: int, difficulty: Difficulty) -> None:
        """Messages for one figure; each has been written when it is replied to."""
        name, rng = self._named(labels)
        for number in range(self._questions):
            episode = self.people.episode(rng, difficulty, "heldout", facts=facts)
            *told, noted = episode.questions
            first = min((q.value or "" for q in told), key=noted.text.index)
            conversation = f"{name}, {number}"
            self.histories[conversation] = [Turn(noted.text, "")]
            answers = _spellings(noted.answer)
            self.items.append(Item(conversation, conversation, noted.text, answers, first, labels=labels))

    def _named(self, labels: dict[str, str | int]) -> tuple[str, random.Random]:
        name = " ".join(f"{k} {v}" for k, v in labels.items())
        return name, random.Random(f"recall-{self._seed}-{name}")

    def _small_talk(self, rng: random.Random, count: int) -> list[Turn]:
        turns: list[Turn] = []
        while len(turns) < count:
            turns += rng.sample(self.people.talk("heldout"), len(self.people.talk("heldout")))
        return turns[:count]


def _item(id: str, conversation: str, episode: Episode, question: Question, labels: dict[str, str | int]) -> Item:
    unknown = question.kind == "unknown"
    told = [q.value for q in episode.questions if q.value and q.kind != "unknown" and q is not question]
    return Item(
        id=id,
        conversation=conversation,
        question=question.text,
        answers=_spellings(question.answer),
        value="" if unknown else question.value or "",
        wrong=tuple(part for value in told for part in value.split(" and ")),
        labels=labels,
    )


def _spellings(answer: str) -> tuple[str, ...]:
    """The answer, and the same in American English: a backbone may prefer that."""
    american = answer.replace("favourite", "favorite").replace("colour", "color").replace("neighbour", "neighbor")
    return tuple(dict.fromkeys((answer, american)))
