"""How replies begin: every way to ask and to tell, and what may stand before a question in its window."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question, Turn, in_window
from deltamem.episodes.indirect import indirect
from deltamem.episodes.relations import Fact, Relation
from deltamem.episodes.synthetic import SyntheticPeople

_TOGETHER, _JOINED = 8, 0.5
"""To so many openings of replies one to a message that tells several things, and the chance of each of them to be told
in one sentence with the one before."""
_TALKED, _ASKED, _NOT_KNOWN = 0.3, 0.3, 0.3
"""Shares of the turns before a question that are small talk and that ask for something, and of those the share that
asks for what was never told."""
_ORDINARY = 0.5
"""Share of the turns before an opening that are ordinary prompts, where there are such."""
_CHAT = (2, 3, 4, 6)
"""Turns of a chat in which all messages tell something and all replies say it back."""
_INDIRECT = 0.3
"""Share of questions that are put indirectly, of those that can be."""
_SOMEBODY_ELSES = 0.35
"""Share of openings that are about what is somebody else's, where such a thing can be."""
_BY_NAME = 0.7
"""The same of those about friends, who are then told of by name."""
_RELATIVES = 0.25
"""Share of the ways to tell and to ask of people close to one; they differ in a noun alone, as families' do."""


def openings(
    people: SyntheticPeople, rng: random.Random, ordinary: Sequence[Question] = (), chats: float = 0.0
) -> list[Question]:
    """Every way to ask, and to tell, of the training split, with what the reply to it begins with; some of a
    family's ways each, and messages that tell several things. Half of them come after other turns, `ordinary` ones
    among them: a backbone likes to say what it said before. A share `chats` of what stands before them is one chat in
    which all is told and said back.
    """
    told = _tellable(people)
    made = []
    for relation in (*(r for r in told if not r.family), *told):
        made += [_opening(people, rng, relation, "question", way) for way in _some(rng, relation, relation.questions)]
    for relation in told:
        made += [_opening(people, rng, relation, "statement", way) for way in _some(rng, relation, relation.statements)]
    made += [_opening_of_several(people, rng, told) for _ in range(len(made) // _TOGETHER)]
    return [replace(q, earlier=_turns(people, rng, told, ordinary, chats)) if rng.random() < 0.5 else q for q in made]


def after_others(
    people: SyntheticPeople, rng: random.Random, questions: Sequence[Question], chats: float = 0.0
) -> list[Question]:
    """The questions, each after other turns in its window, as openings of replies are."""
    relations = _tellable(people)
    return [replace(q, earlier=_turns(people, rng, relations, chats=chats)) for q in questions]


def _turns(
    people: SyntheticPeople,
    rng: random.Random,
    relations: Sequence[Relation],
    ordinary: Sequence[Question] = (),
    chats: float = 0.0,
) -> tuple[Question, ...]:
    """What may have been said before in a window: things told and asked, small talk, and ordinary prompts, with the
    replies; or a chat in which one thing after the other is told.
    """
    if chats and rng.random() < chats:
        return in_window(_told_turn(people, rng, rng.choice(relations), 1.0) for _ in range(rng.choice(_CHAT)))

    def turn() -> Turn:
        if ordinary and rng.random() < _ORDINARY:
            prompt = rng.choice(ordinary)
            return Turn(prompt.text, prompt.answer)
        return _any_turn(people, rng, rng.choice(relations))

    return in_window(turn() for _ in range(rng.choice((1, 1, 2, 3))))


def _any_turn(people: SyntheticPeople, rng: random.Random, relation: Relation) -> Turn:
    how = rng.random()
    if how < _TALKED:
        return rng.choice(people.small_talk)
    if how < _TALKED + _ASKED:
        fact = _any_fact(people, rng, relation)
        kind = "unknown" if rng.random() < _NOT_KNOWN else fact.kind
        asked = people.phrasing.asked(rng, fact, kind, Difficulty(), "train")
        return Turn(asked.text, asked.answer)
    return _told_turn(people, rng, relation, 0.7)


def _told_turn(people: SyntheticPeople, rng: random.Random, relation: Relation, said_back: float) -> Turn:
    """Something told, and the reply, which says it back with that chance."""
    fact, said = people.told(rng, relation)
    noted = people.phrasing.noted([fact])
    return Turn(said, noted if rng.random() < said_back else rng.choice(people.phrasing.acknowledgements))


def _tellable(people: SyntheticPeople) -> list[Relation]:
    singular = {relation.id: relation for relation in (*people.relations, *people.singles)}
    return [*singular.values(), *people.families, *people.numbers, *people.relatives]


def _opening(people: SyntheticPeople, rng: random.Random, relation: Relation, what: str, way: str) -> Question:
    fact = _any_fact(people, rng, relation)
    if what == "question" and rng.random() < _INDIRECT:
        way = indirect(rng, way) or way
    if fact.said_of(way) == way:
        fact = replace(fact, owner=None)
    text = people.phrasing.around(rng, what, fact.said_of(way).format(v=fact.value))
    begun = fact.reply(relation.answer)[1]
    return Question(text, begun if what == "question" else people.phrasing.noted_up_to(begun), "", relation.id)


def _opening_of_several(people: SyntheticPeople, rng: random.Random, relations: Sequence[Relation]) -> Question:
    """A message that tells two or three things. The reply begins with the first of them."""
    facts = [
        _any_fact(people, rng, relation)
        for relation in rng.sample(relations, min(len(relations), rng.choice((2, 2, 3))))
    ]
    text = people.phrasing.statement(rng, facts, "train", joined=_JOINED).user
    relation, begun = facts[0].relation, facts[0].reply(facts[0].relation.answer)[1]
    return Question(text, people.phrasing.noted_up_to(begun), "", relation.id)


def _any_fact(people: SyntheticPeople, rng: random.Random, relation: Relation) -> Fact:
    """One of the training split, the user's own or somebody else's; half of the values are likely ones."""
    others = _BY_NAME if relation.named else _SOMEBODY_ELSES
    owner = people.anybody(rng, "train") if relation.possessed and rng.random() < others else None
    likely = people.values.likely(relation.id, "train")
    values = likely if likely and rng.random() < 0.5 else people.values.single(relation.kind, "train")
    return Fact(relation, rng.choice(values), owner)


def _some(rng: random.Random, relation: Relation, phrasings: Sequence[str]) -> Sequence[str]:
    """Those of the training split, and about half of them for a relation of a family, or fewer."""
    offered = phrasings[:-1]
    if relation.way:
        return [way for way in offered if relation.named or rng.random() < _RELATIVES]
    return rng.sample(offered, (len(offered) + 1) // 2) if relation.family else offered
