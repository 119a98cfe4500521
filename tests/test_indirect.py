"""Questions put indirectly."""

from __future__ import annotations

import random

import pytest

from deltamem.episodes.indirect import indirect
from deltamem.episodes.openings import openings
from deltamem.episodes.synthetic import SyntheticPeople


@pytest.mark.parametrize(
    ("asked", "clause"),
    [
        ("Where do I live?", "where I live"),
        ("What language do we speak at home?", "what language we speak at home"),
        ("Which words am I memorising?", "which words I am memorising"),
        ("What have I promised my child?", "what I have promised my child"),
        ("What is my dog called?", "what my dog is called"),
        ("What is my dog's name?", "what my dog's name is"),
        ("Who was my first teacher?", "who my first teacher was"),
        ("What is the name of my boat?", "what the name of my boat is"),
    ],
)
def test_a_question_is_put_indirectly(asked: str, clause: str) -> None:
    made = [indirect(random.Random(seed), asked) for seed in range(60)]
    assert len(set(made)) > 10
    for text in made:
        assert text is not None and clause in text and text[-1] in ".?" and asked not in text


@pytest.mark.parametrize(
    "asked", ["My lunch was what?", "What did I eat?", "Who is my plane ticket from?", "What is my trade in?",
              "Who was my brother again?", "Tell me my dog's name."]
)  # fmt: skip
def test_what_does_not_say_how_it_is_turned_is_left(asked: str) -> None:
    assert indirect(random.Random(0), asked) is None


def test_some_openings_are_asked_indirectly_and_none_as_held_out(people: SyntheticPeople) -> None:
    texts = [q.text for q in openings(people, random.Random(0))]
    share = sum(("Do you happen to know" in text) or ("I wonder" in text) for text in texts) / len(texts)
    assert 0.005 < share < 0.05
    held_out = {relation.questions[-1] for relation in (*people.relations, *people.families)}
    assert not [text for text in texts if text in held_out]
