"""How replies begin, and what stands before a question in its window."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from deltamem.episodes.episode import Question, Turn
from deltamem.episodes.openings import after_others, openings
from deltamem.episodes.relations import Fact
from deltamem.episodes.synthetic import SyntheticPeople


def test_openings_of_replies_to_several_things_begin_with_the_first(
    people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[Fact]] = {}
    statement = people.phrasing.statement

    def kept(rng: random.Random, facts: list[Fact], *args: Any, **options: Any) -> Turn:
        turn = statement(rng, facts, *args, **options)
        told[turn.user] = facts
        return turn

    monkeypatch.setattr(people.phrasing, "statement", kept)
    every = openings(people, random.Random(0))
    several = [q for q in every if q.text in told]
    assert len(several) == (len(every) - len(several)) // 8 > 1000
    for question in several:
        first, *others = told[question.text]
        assert others and all(fact.value in question.text for fact in (first, *others))
        assert question.topic == first.relation.id
        assert question.answer == f"Got it. {first.reply(first.relation.answer)[1]}"


def test_half_of_the_openings_stand_after_other_turns_some_of_them_ordinary(people: SyntheticPeople) -> None:
    ordinary = [Question(f"Why is it {n}?", "So.", kind="ordinary") for n in range(40)]
    every = openings(people, random.Random(0), ordinary)
    after = [q for q in every if q.earlier]
    assert 0.45 < len(after) / len(every) < 0.55
    turns = [turn for q in after for turn in q.earlier]
    share = sum(turn in ordinary for turn in turns) / len(turns)
    assert 0.4 < share < 0.6
    assert not {q.text for q in ordinary} & {
        turn.text for q in openings(people, random.Random(0)) for turn in q.earlier
    }


def test_a_question_may_stand_after_what_was_told_and_asked_before(people: SyntheticPeople) -> None:
    asked = [Question(f"Why is it {n}?", "So.", kind="ordinary") for n in range(400)]
    put = after_others(people, random.Random(0), asked)
    assert [replace(q, earlier=()) for q in put] == asked
    turns = [turn for q in put for turn in q.earlier]
    assert {len(q.earlier) for q in put} == {1, 2, 3} and all(turn.kind == "ordinary" for turn in turns)
    talk = {(turn.user, turn.reply) for turn in people.small_talk}
    told = sum(turn.answer.startswith("Got it.") for turn in turns)
    unknown = sum("..." in turn.answer for turn in turns)
    small = sum((turn.text, turn.answer) in talk for turn in turns)
    assert min(told, unknown, small) > len(turns) / 20, "of every sort there is some"
    held_out = {relation.questions[-1] for relation in people.relations}
    assert not [turn for turn in turns if turn.text.endswith(tuple(held_out))]


def test_what_stands_before_may_be_one_chat_in_which_all_is_told_and_said_back(people: SyntheticPeople) -> None:
    for some in (
        openings(people, random.Random(0), [Question("Why?", "So.", kind="ordinary")], chats=1.0),
        after_others(people, random.Random(0), [Question(f"Why is it {n}?", "So.") for n in range(40)], chats=1.0),
    ):
        after = [q for q in some if q.earlier]
        assert {len(q.earlier) for q in after} == {2, 3, 4, 6}
        assert all(turn.answer.startswith("Got it.") for q in after for turn in q.earlier)
