"""Histories put together from a bank."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.passes import Passes
from deltamem.episodes.sorts import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places import draw
from deltamem.training.places.bank import Bank, joined, part_of, with_words
from deltamem.training.places.builder import Shares, build_bank
from deltamem.training.places.collector import _early
from deltamem.training.places.draw import Drawing
from deltamem.training.places.vocabulary import tell_vocabulary
from tests.places.conftest import IDLE
from tests.test_training import Words


@pytest.fixture
def as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts are asked for at their own places, and told with their own values."""
    monkeypatch.setattr(draw, "_CROSSED", 0)
    monkeypatch.setattr(draw, "_SWAPPED", 0.0)


def test_a_value_told_before_its_topic_is_not_asked_for_among_others(bank: Bank, as_told: None) -> None:
    def told(text: str, *more: str) -> bool:
        return _early(Question("Dog?", "It is Rex.", "Rex"), Episode(tuple(Turn(t, "Ok.") for t in (text, *more)), ()))

    assert told("Rex is my dog.") and told("Hello! A Rex is what I drive.") and told("I love Rex, my favourite band.")
    assert not told("My dog is Rex.") and not told("Listen. I live in Rex.")
    assert told("My dog is Rex.", "No. Rex is my dog.")
    early = replace(bank, facts=[replace(f, early=n % 2 == 0) for n, f in enumerate(bank.facts)])
    places = {p for f in early.facts if f.early for p in f.asked}
    rng = random.Random(0)
    alone = Drawing(early).histories(rng, 1, 40, 0.0, 1000)
    assert places & set(alone.places.tolist())
    among = Drawing(early).histories(rng, 8, 20, 0.0, 1000)
    asked = set(among.places.tolist())
    assert asked and not asked & places
    told_too = {t for f in early.facts if f.early for t in f.told} & set(among.told[among.valid].tolist())
    assert told_too, "they are told all the same"


def test_any_way_to_ask_goes_with_any_way_to_tell_and_with_any_value(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = build_bank(passes, people, IDLE, 24, seed=7, begun=0.0)
    monkeypatch.setattr(draw, "_SWAPPED", 0.9)  # few values of so small a bank are words of one token
    topics = {p: f.topic for f in bank.facts for p in f.asked}
    noted = {p for f in bank.facts if f.noted for p in f.asked}
    assert noted, "and in the reply to a statement nothing but what it says is expected"
    drawn = Drawing(bank).histories(random.Random(0), 3, 30, 0.0, 2000)
    crossed = 0
    for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
        valid = drawn.valid[row]
        told, said = drawn.told[row][valid].tolist(), drawn.said[row][valid].tolist()
        if place in noted or not bank.values[place]:
            assert target == int(bank.targets[place])
            continue
        assert target in bank.told_ids[said]
        own = [f for f in bank.facts if f.topic == topics[place] and set(f.told) <= set(told)]
        assert own, "the topic was told"
        crossed += all(place not in f.asked for f in own)
    assert crossed > 10
    assert 0.05 < float((drawn.told != drawn.said)[drawn.valid].float().mean()) < 0.5


def test_a_word_of_several_is_swapped_alone(bank: Bank) -> None:
    """What is told and what is expected go together, word by word."""
    drawing = Drawing(bank)
    ids = bank.told_ids.tolist()
    longer = [f for f in drawing._apart if len({ids[t] for t in f.told}) > 1 and drawing._swappable.get(f.told[0])]
    assert longer
    for fact in longer:
        word, mine = drawing._swappable[fact.told[0]][0], {ids[t] for t in fact.told}
        other = next(n for n in drawing._words if ids[n] not in mine)
        expected = {p: int(bank.targets[p]) for p in fact.asked}
        expected |= {p: ids[other] for p, own in expected.items() if bank.values[p] and own == word}
        asked = drawing._asked(random.Random(0), 0, fact, {word: other})
        assert {p: t for _, p, t in asked if p in fact.asked} == expected
        assert set(expected.values()) & (mine - {word}) and ids[other] in expected.values()


def test_values_are_told_with_words_that_no_fact_has(
    bank: Bank, passes: Passes, people: SyntheticPeople, as_told: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First tokens with pieces that begin a value, others with those that go on one; and so they are asked for."""
    monkeypatch.setattr(draw, "_SWAPPED", 1.0)
    monkeypatch.setattr(draw, "_FROM_WORDS", 1.0)
    bank = with_words(bank, tell_vocabulary(passes, people, 1))
    assert bank.words is not None
    ids, told = [*bank.told_ids.tolist(), *bank.words.ids.tolist()], len(bank.told_ids)
    later = [False] * told + bank.words.later.tolist()
    drawing = Drawing(bank)
    drawn = drawing.histories(random.Random(0), 2, 40, 0.0, 2000)
    of = {t: f for f in bank.facts for t in f.told}
    swapped = [
        (t, s)
        for t, s in zip(drawn.told[drawn.valid].tolist(), drawn.said[drawn.valid].tolist(), strict=True)
        if t != s
    ]
    assert len(swapped) > 20
    for own, other in swapped:
        assert other >= told and later[other] == (ids[own] != drawing._begins_with(of[own]))
    can_be = {p for f in bank.facts if not f.noted and f.told[0] in drawing._swappable for p in f.asked}
    said = {row: {ids[n] for n in drawn.said[row][drawn.valid[row]].tolist()} for row in range(len(drawn.said))}
    asked = [
        (row, t)
        for p, row, t in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True)
        if bank.values[p] and p in can_be
    ]
    assert asked and all(target in said[row] for row, target in asked)
    assert {target for _, target in asked} <= set(bank.candidates.tolist())
    numbers = drawn.said.flatten()
    found = bank.said(numbers)
    for at, number in enumerate(numbers.tolist()):
        expected = bank.told[:, number] if number < told else bank.words.hidden[:, number - told]
        assert torch.equal(found[:, at], expected)


def test_histories_hold_different_topics_and_ask_about_them(bank: Bank, as_told: None) -> None:
    drawing = Drawing(bank)
    of = {place: fact for fact in bank.facts for place in fact.asked}
    for seed in range(20):
        drawn = drawing.histories(random.Random(seed), 3, 4, unknown=0.3, places=10)
        told = [set(drawn.told[row][drawn.valid[row]].tolist()) for row in range(4)]
        never = 0
        for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
            if target == int(bank.targets[place]) and place in of:
                assert set(of[place].told) <= told[row], "what is asked about was told in that history"
            else:
                never += 1
                assert place not in of or not set(of[place].told) & told[row]
        assert never < len(drawn.places) and drawn.valid.any(1).all()


def test_what_differs_in_a_noun_is_told_and_asked_for_together(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = SyntheticPeople(Words())
    people.families = every.families
    monkeypatch.setattr("deltamem.training.places.builder._FAMILIES", 1.0)
    monkeypatch.setattr("deltamem.training.places.builder._SINGLES", 0.0)
    bank = build_bank(passes, people, IDLE, 30, seed=3)
    of = {p: f.topic for f in (*bank.facts, *bank.unknown) for p in f.asked}

    def near(share: float) -> float:
        """How often what was never told is of a sort of which something was."""
        monkeypatch.setattr(draw, "_NEAR", share)
        drawing = Drawing(bank)
        drawn = drawing.histories(random.Random(0), 2, 40, 1.0, 2000)
        sorts = {n: sort_of(topic.relation) for topic, n in drawing._numbers.items()}
        told = [{sorts[int(n)] for n in a[v]} for a, v in zip(drawn.about, drawn.valid, strict=True)]
        never = (drawn.targets == bank.unsaid).nonzero()[:, 0].tolist()
        assert len(never) > 10
        about = [(of[int(drawn.places[i])], int(drawn.rows[i])) for i in never]
        return sum(sort_of(topic.relation) in told[row] for topic, row in about) / len(about)

    assert near(1.0) > max(0.9, near(0.0) + 0.2)


def test_a_statement_is_replied_to_when_it_has_been_told(bank: Bank) -> None:
    stated = {tuple(f.asked): f for f in bank.facts if f.noted}
    assert stated
    drawn = Drawing(bank).statements(random.Random(0), 2, 30)
    assert torch.equal(drawn.targets, bank.targets[drawn.places]) and torch.equal(drawn.told, drawn.said)
    assert len(drawn.told) == 30 and set(drawn.rows.tolist()) == set(range(30))
    for row in range(30):
        fact = stated[tuple(drawn.places[drawn.rows == row].tolist())]
        told = drawn.told[row][drawn.valid[row]].tolist()
        assert told[-len(fact.told) :] == fact.told and len(told) > len(fact.told)
    alone = Drawing(bank).statements(random.Random(0), 0, 5)
    own = {tuple(f.told) for f in stated.values()}
    assert all(tuple(told[valid].tolist()) in own for told, valid in zip(alone.told, alone.valid, strict=True))
    none = replace(bank, facts=[fact for fact in bank.facts if not fact.noted])
    assert not len(Drawing(none).statements(random.Random(0), 2, 30).places)


def test_what_stands_in_its_window_is_asked_for_with_all_that_does(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = Difficulty(facts=4, unknown=1.0, together=0.5)
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", hard)
    bank = build_bank(passes, people, IDLE, 24, seed=1, shares=Shares(chats=0.6))
    inside = [fact for fact in bank.facts if fact.in_window]
    never = [fact for fact in bank.unknown if fact.seen]
    assert len(inside) > 10 and len(never) > 3 and len(inside) < len(bank.facts)
    assert any(set(fact.seen) - set(fact.told) for fact in inside)
    topics = {token: fact.topic for fact in bank.facts for token in fact.told}
    own = {place: fact for fact in bank.facts for place in fact.asked}
    own |= {place: fact for fact in bank.unknown for place in fact.asked}
    drawn = Drawing(bank).histories(random.Random(0), 2, 60, 1.0, 4000)
    kinds = [0, 0]
    for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
        fact, told = own[place], drawn.told[row][drawn.valid[row]].tolist()
        if not fact.seen:
            continue
        assert target == int(bank.targets[place]), "what stands in its window is what is to be said"
        assert set(fact.told) <= set(told)
        there = {topics[token] for token in told}
        assert {topics[token] for token in fact.seen} <= there, "and all of that was told"
        kinds[bool(fact.told)] += 1
    assert min(kinds) > 10

    half = part_of(bank, inside[:3])
    again = joined([half, half])
    for fact, was in zip(again.facts, inside[:3] * 2, strict=True):
        ids = again.told_ids[fact.seen].tolist()
        assert ids and set(ids) <= set(bank.told_ids[was.seen].tolist()) and fact.in_window
