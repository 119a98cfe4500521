"""What can be told about a person, and the ways to tell it, to ask for it and to answer."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cached_property

from deltamem.episodes.words import Split

_SECOND_PERSON = {
    "i am": "you are", "i was": "you were", "we are": "you are", "we were": "you were", "i": "you", "we": "you",
    "me": "you", "my": "your", "our": "your", "am": "are", "myself": "yourself",
}  # fmt: skip
_FIRST_PERSON = re.compile(r"\b(" + "|".join(sorted(_SECOND_PERSON, key=len, reverse=True)) + r")\b", re.IGNORECASE)


@dataclass(frozen=True)
class Relation:
    """Something that can be told about a person.

    Attributes:
        id: its name.
        kind: ``name`` (capitalised values) or ``word``, or one of `numbers.numbers`.
        statements: phrasings with ``{v}`` for the value; the last is held out.
        questions: phrasings of the question; the last is held out.
        answer: the reply, with ``{v}``.
        possessed: what stands after "my" in the phrasings, where somebody else can have one; else empty.
        heldout: the whole relation is kept from training.
        family: it differs from others in a noun alone.
        way: the relation that says the same of oneself, where it is about somebody close ("home" of "My sister lives in
            {v}."); else empty.
        named: somebody else's is told of that person by name: "Anna lives in {v}." for "My friend lives in {v}.".
    """

    id: str
    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    possessed: str = ""
    heldout: bool = False
    family: bool = False
    way: str = ""
    named: bool = False

    @cached_property
    def other_answers(self) -> tuple[str, ...]:
        """Other replies than `answer`: the statements of the training split, said back to who made them."""
        said = [_said_back(statement) for statement in self.statements[:-1]]
        return tuple(dict.fromkeys(s for s in said if s and s != self.answer))


@dataclass(frozen=True)
class Fact:
    """A relation with its value; `owner` is None for the user, else another person's name."""

    relation: Relation
    value: str
    owner: str | None = None
    is_list: bool = False

    @property
    def kind(self) -> str:
        """What sort of question asks for it."""
        return "other" if self.owner else "list" if self.is_list else "recall"

    @property
    def answer(self) -> str:
        """The reply to a question about it."""
        return self.reply(self.relation.answer)[0]

    def reply(self, answer: str) -> tuple[str, str]:
        """One of the relation's answers, and the words of it that come before the value."""
        owned = self.said_of(answer)
        return owned.format(v=self.value), owned.partition("{v}")[0].rstrip()

    def phrase(self, rng: random.Random, phrasings: tuple[str, ...], split: Split) -> str:
        """One of the relation's statements or questions, of a split, about the owner."""
        offered = phrasings[-1:] if split == "heldout" else phrasings[:-1]
        if self.owner is not None:
            owned = [self.said_of(p) for p in offered]
            changed = [new for new, old in zip(owned, offered, strict=True) if new != old]
            # Where the held-out phrasing says no "my", the plainest one does.
            offered = tuple(changed or [self.said_of(phrasings[0])])
        return rng.choice(offered)

    def said_of(self, text: str) -> str:
        """A text about the user's own, told of the owner."""
        if self.owner is None:
            return text
        mine = rf"\b([Mm]y|[Yy]our) {re.escape(self.relation.possessed)}\b"
        whose = self.owner if self.relation.named else f"{self.owner}'s {self.relation.possessed}"
        return re.sub(mine, whose, text)


def _said_back(statement: str) -> str | None:
    """A statement in the second person; None where it speaks to the listener, or has too little before its value."""
    if re.search(r"\byou", statement, re.IGNORECASE):
        return None
    statement = statement.removeprefix("By the way, ")
    if len(statement.partition("{v}")[0].split()) < 2:
        return None
    said = _FIRST_PERSON.sub(lambda found: _SECOND_PERSON[found[1].lower()], statement)
    return said[0].upper() + said[1:]
