"""What is told of people close to one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.numbers import is_number
from deltamem.episodes.openings import openings
from deltamem.episodes.relation_data import is_of_relatives, relatives
from deltamem.episodes.relations import Fact
from deltamem.episodes.sorts import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.evaluation.tasks.recall import recall_task
from tests.test_training import Words

CLOSE = Difficulty(facts=6, relatives=True, others=0.3, unknown=0.5)
PARTS = ("relatives", "relatives never seen", "relatives beside oneself", "never told of relatives")


@pytest.fixture(scope="module")
def people() -> SyntheticPeople:
    return SyntheticPeople(Words())


def test_each_says_who_it_is_about_and_has_one_value() -> None:
    every = relatives()
    assert len({relation.id for relation in every}) == len(every) > 500
    for relation in every:
        who = relation.id.removesuffix(f"_{relation.way}").replace("_", " ")
        assert relation.answer.startswith(f"Your {who} ")
        for phrasing in (*relation.statements, *relation.questions):
            assert f"y {who}" in phrasing
        assert all(said.count("{v}") == 1 for said in (*relation.statements, relation.answer))
        assert not any("{" in question for question in relation.questions)
        assert is_of_relatives(relation.id) and sort_of(relation.id) == relation.way
        assert is_number(relation.id) == (relation.kind == "age")
    assert not is_of_relatives("sister")
    assert not is_of_relatives("home")


def test_people_held_out_are_others(people: SyntheticPeople) -> None:
    known = {relation.answer.split(" {v}")[0] for relation in people.relatives}
    assert not known & {relation.answer.split(" {v}")[0] for relation in people.heldout_relatives}


def test_a_friend_may_be_told_of_by_name(people: SyntheticPeople) -> None:
    home = next(relation for relation in people.relatives if relation.id == "friend_home")
    fact = Fact(home, "Oslo", "Anna")
    assert fact.answer == "Anna lives in Oslo."
    assert fact.said_of("Where is my friend's home?") == "Where is Anna's home?"
    assert Fact(home, "Oslo").answer == "Your friend lives in Oslo."
    assert [relation.id for relation in people.relatives if relation.possessed] == [
        relation.id for relation in people.relatives if relation.id.startswith("friend_")
    ]


def test_they_are_told_beside_what_says_the_same_of_oneself(people: SyntheticPeople) -> None:
    episodes = [people.episode(random.Random(seed), CLOSE, "train") for seed in range(300)]
    asked = [[q for q in episode.asked if q.kind != "noted"] for episode in episodes]
    topics = [{question.topic for question in some} for some in asked]
    close = [{topic for topic in some if is_of_relatives(topic)} for some in topics]
    assert sum(map(bool, close)) > 200
    both = [1 for some, own in zip(close, topics, strict=True) if {sort_of(topic) for topic in some} & (own - some)]
    assert len(both) > 15
    named = [question for some in asked for question in some if question.owner and is_of_relatives(question.topic)]
    assert len(named) > 20
    assert all(question.answer.startswith(f"{question.owner} ") for question in named)
    # Where nobody asks for them there are none.
    plain = people.episode(random.Random(0), replace(CLOSE, relatives=False), "train")
    assert not any(is_of_relatives(question.topic) for question in plain.asked)


def test_what_fits_them_is_what_fits_oneself(people: SyntheticPeople) -> None:
    likely = people.values.likely
    assert likely("sister_home", "train") == likely("home", "train") != []
    assert likely("niece_home", "heldout") == likely("home", "heldout") != []


def test_replies_about_them_begin_with_who_it_is(people: SyntheticPeople) -> None:
    made = [q for q in openings(people, random.Random(0)) if is_of_relatives(q.topic)]
    assert len(made) > 500
    begun = {question.answer.removeprefix("Got it. ") for question in made}
    assert "Your sister lives in" in begun
    of_friends = {of for of in begun if not of.startswith("Your ")}
    assert len(of_friends) > 20


def test_recall_asks_for_them(people: SyntheticPeople) -> None:
    task = recall_task(Words(), 12, parts=PARTS)
    kinds = {part: [item for item in task.items if item.labels["kind"] == part] for part in PARTS}
    assert all(len(items) >= 12 for items in kinds.values())
    for item in kinds["relatives beside oneself"]:
        assert len(item.wrong) == 1
        assert item.value
    answers = {item.answers[0][:4] for item in kinds["relatives beside oneself"]}
    assert answers == {"You ", "Your"}
    assert not any(item.value for item in kinds["never told of relatives"])
    seen = {relation.answer.split(" {v}")[0] for relation in people.relatives}
    assert not any(item.answers[0].startswith(tuple(seen)) for item in kinds["relatives never seen"])
