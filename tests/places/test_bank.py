"""The bank: what was told, what is asked, how replies begin."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import read_batch, text_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.openings import openings
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.made_up import make_up
from deltamem.training.own_text import write_text
from deltamem.training.places import draw
from deltamem.training.places.bank import Bank, joined
from deltamem.training.places.builder import _LENGTH, build_bank
from deltamem.training.places.collector import Collector
from deltamem.training.places.draw import Drawing
from deltamem.training.places.tail import Tail
from tests.conftest import make_memory, make_model
from tests.places.conftest import IDLE, OPTIONS


def test_what_was_told_is_what_was_marked(passes: Passes, people: SyntheticPeople, bank: Bank) -> None:
    told = [t for f in bank.facts for t in f.told]
    assert set(told) == set(range(bank.told.shape[1])), "every told token belongs to a fact"
    asked = [p for f in (*bank.facts, *bank.unknown) for p in f.asked]
    assert len(asked) == len(set(asked)) and set(asked) <= set(range(len(bank.targets)))
    assert all(not f.told for f in bank.unknown) and bank.unknown
    assert torch.isin(bank.targets, bank.candidates).all() and bank.unsaid in bank.candidates


def test_where_a_sentence_begins_is_always_kept(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", Difficulty(facts=1, noted=1.0))
    monkeypatch.setattr("deltamem.training.places.collector._REST", 0.0)
    bank = build_bank(passes, people, IDLE, 12)
    replies = [f.asked for f in bank.facts if f.noted]
    assert len(replies) >= 10
    for reply in replies:
        assert bank.values[reply].tolist().index(True) == 1, "one place before the value: where its sentence begins"
        assert int(bank.targets[reply[-1]]) in passes.form.stops, "and one where the reply ends"


def test_banks_are_joined(passes: Passes, people: SyntheticPeople, bank: Bank) -> None:
    other = build_bank(passes, people, IDLE, 5, seed=2)
    both = joined([bank, other])
    for facts, theirs, ours in ((both.facts, other.facts, bank.facts), (both.unknown, other.unknown, bank.unknown)):
        assert list(facts[: len(ours)]) == list(ours) and len(facts) == len(ours) + len(theirs)
        for fact, own in zip(facts[len(ours) :], theirs, strict=True):
            assert (fact.topic, fact.early, fact.noted) == (own.topic, own.early, own.noted)
            assert torch.equal(both.told[:, fact.told], other.told[:, own.told])
            assert torch.equal(both.told_ids[fact.told], other.told_ids[own.told])
            assert torch.equal(both.targets[fact.asked], other.targets[own.asked])
            assert torch.equal(both.residuals[fact.asked], other.residuals[own.asked])
    assert torch.isin(other.candidates, both.candidates).all() and both.unsaid == bank.unsaid
    assert both.idle.shape[1] == len(both.idle_residuals) and both.before.shape[1] in (0, both.told.shape[1])


def test_what_is_told_alone_is_asked_for_where_others_are(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.TOLD_ALONE", 3)
    bank = joined([build_bank(passes, people, IDLE, 12, seed=n, stock=6) for n in (1, 2)])
    assert len(bank.stock) > 12 and not any(f.asked or f.early or f.noted for f in bank.stock)
    own = {t for f in bank.facts for t in f.told}
    alone = {t: f for f in bank.stock for t in f.told}
    assert not own & alone.keys() and own | alone.keys() <= set(range(len(bank.told_ids)))
    monkeypatch.setattr(draw, "_STOCKED", 1.0)
    monkeypatch.setattr(draw, "_ALIKE", 0.0)
    drawing = Drawing(bank)
    topics = {p: f.topic for f in bank.facts for p in f.asked}
    drawn = drawing.histories(random.Random(0), 2, 20, 0.0, 1000)
    told = [{alone[int(t)].topic: alone[int(t)] for t in row if int(t) in alone} for row in drawn.told]
    asked = 0
    for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
        fact = told[row].get(topics[place])
        if fact is not None and bank.values[place]:
            asked += 1
            assert target == int(bank.told_ids[fact.told[0]]), "what is said is its own"
    assert asked > 20


def test_what_stands_before_a_value_is_kept_for_its_key(passes: Passes, people: SyntheticPeople) -> None:
    bank = build_bank(passes, people, IDLE, 12, seed=5)
    if passes.memory.config.keys == "own":
        assert bank.before.shape[1] == 0
        return
    assert bank.before.shape == bank.told.shape
    # Where two tokens of a value follow each other, the first stands before the second.
    pairs = [(a, b) for f in bank.facts for a, b in zip(f.told, f.told[1:], strict=False) if b == a + 1]
    same = [torch.equal(bank.before[:, b], bank.told[:, a]) for a, b in pairs]
    assert sum(same) > 0.7 * len(same) > 5, "most are of one value"
    nothing = (bank.before == 0).all(dim=2).all(dim=0)
    assert 0 < int(nothing.sum()) < len(nothing) / 4, "few messages begin with a value"


def test_what_is_passed_on_to_a_value_is_kept_for_its_key(tokenizer: Any, people: SyntheticPeople) -> None:
    keys = {"keys": "pair", "own_share": 0.5, "fading": 0.7}
    passes = Passes(make_memory(make_model().requires_grad_(False), **keys, **OPTIONS), ChatFormat.of(tokenizer))
    collector = Collector(passes, torch.Generator().manual_seed(0), torch.device("cpu"))
    told = Turn("My dog is Rex. My cat is Tom.", "Ok."), Turn("I live in Rome.", "I see.")
    asked = tuple(Question(q, f"It is {v}.", v) for q, v in (("Dog?", "Rex"), ("Cat?", "Tom"), ("Where?", "Rome")))
    batch = write_batch(passes.form, [Episode(told, asked), Episode(told[1:], asked[2:])])
    places = batch.values > 0
    seen: dict[int, torch.Tensor] = {}
    stop = passes.memory.watch(seen.__setitem__)
    with torch.no_grad(), passes.memory.disabled(), collector._record_before(places, batch.written):
        passes.run(batch)
    stop()
    (before,) = collector._hidden["before"]
    assert places.any() and not batch.written.all()
    for layer, hidden in seen.items():
        expected = []
        for row in range(2):
            passed = torch.zeros_like(hidden[row, 0])
            for t in range(hidden.shape[1]):
                if places[row, t]:
                    expected.append(passed)
                passed = (hidden[row, t] + 0.7 * passed) * batch.written[row, t]
        torch.testing.assert_close(before[layer].float(), torch.stack(expected), atol=0.02, rtol=0.01)


def test_how_replies_begin_is_kept_of_every_question(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = openings(people, random.Random(0))
    assert {q.topic for q in asked} >= {r.id for r in (*people.relations, *people.singles, *people.families)}
    held_out = {way for r in people.relations for way in (r.questions[-1], r.statements[-1].partition("{v}")[0])}
    assert not any(q.text.endswith(way) for q in asked for way in held_out)
    told = [q for q in asked if q.answer.startswith("Got it.")]
    assert {q.topic for q in told} >= {r.id for r in (*people.relations, *people.singles, *people.families)}
    assert 0.4 < sum(bool(q.earlier) for q in asked) / len(asked) < 0.6
    few = sorted([*(q for q in asked if not q.earlier), *(q for q in asked if q.earlier)][-14::2], key=_LENGTH)
    assert any(q.earlier for q in few)
    monkeypatch.setattr("deltamem.training.places.builder.openings", lambda *_: few)
    bank = build_bank(passes, people, IDLE, 2)
    words = [t for q in few for t in passes.form.text(q.answer)]
    assert bank.opening_targets.tolist() == words
    assert bank.opening_begins.tolist() == [n < 3 for q in few for n, _ in enumerate(passes.form.text(q.answer))]
    with torch.no_grad():
        batch = read_batch(passes.form, [(0, q) for q in few])
        expected = passes.read(batch, None)[:, bank.candidates]
        found = Tail(passes.memory)(bank.opening_residuals, bank.candidates)
    inside = batch.expected()[0] != passes.form.following[0]
    torch.testing.assert_close(found, expected[inside], atol=0.05, rtol=0.05)


def drawn_apart(make: Callable[[], Any]) -> Any:
    """What is made, which moves nobody else's draws."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made = make()
    assert torch.equal(torch.rand(1), expected), "nobody else's draws are moved"
    return made


def test_the_backbone_makes_up_ordinary_talk(passes: Passes, people: SyntheticPeople) -> None:
    made = drawn_apart(lambda: make_up(passes, 5, seed=1))
    assert len(made) == 5 and made == make_up(passes, 5, seed=1) and made != make_up(passes, 5, seed=2)
    stop = passes.form.tokenizer.eos_token
    assert all(q.kind == "ordinary" and q.text and q.answer and stop not in q.text + q.answer for q in made)
    bank = build_bank(passes, people, made, 2)
    assert len(bank.idle_begins) == bank.idle.shape[1]
    replies = [int((read_batch(passes.form, [(0, q)]).targets != -100).sum()) for q in made]
    assert int(bank.idle_begins.sum()) == 2 * sum(min(3, n) for n in replies), "alone, and after others"
    assert bank.idle.shape[1] == 2 * sum(replies)
    none = build_bank(passes, people, [], 2)
    assert none.idle.shape[1] == len(none.idle_residuals) == 0
    assert make_up(passes, 0) == []


def test_the_backbone_writes_text_that_is_left_alone(passes: Passes, people: SyntheticPeople) -> None:
    texts = drawn_apart(lambda: write_text(passes, 5, seed=1))
    assert texts and texts == write_text(passes, 5, seed=1) != write_text(passes, 5, seed=2)
    assert write_text(passes, 0) == []
    without, bank = (build_bank(passes, people, IDLE, 2, texts=some) for some in ((), texts))
    first = without.idle.shape[1]
    assert torch.equal(bank.idle[:, :first], without.idle)
    assert bank.idle.shape[1] - first == sum(len(ids) - 1 for ids in texts)
    assert not bank.idle_begins[first:].any() and len(bank.idle_begins) == bank.idle.shape[1]
    assert bank.idle_unseen.tolist() == [n >= first for n in range(bank.idle.shape[1])]
    longest = max(texts, key=len)
    with torch.no_grad():
        said = passes.read(text_batch([longest]), None)[:, bank.candidates]
        found = Tail(passes.memory)(bank.idle_residuals[first:], bank.candidates)
    assert min(float((found[at : at + len(said)] - said).abs().max()) for at in range(len(found) - len(said) + 1)) < 0.1


def test_talk_that_an_adapter_was_never_shown_is_marked(passes: Passes, people: SyntheticPeople) -> None:
    new = [Question("What is 7 plus 15?", "22.", kind="ordinary"), Question("how are you", "well", kind="ordinary")]
    seen, both = (build_bank(passes, people, IDLE, 2, unseen=some) for some in ((), new))
    assert not seen.idle_unseen.any() and len(both.idle_unseen) == both.idle.shape[1]
    assert int(both.idle_unseen.sum()) == both.idle.shape[1] - seen.idle.shape[1] > 0
    assert int(both.idle_unseen.sum()) == 2 * sum(len(passes.form.text(q.answer)) for q in new) + 2 * len(new)


def test_of_how_replies_about_words_begin_a_share_is_enough(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = openings(people, random.Random(0))[::100]
    numeric = {q.topic for q in few[::3]}
    monkeypatch.setattr("deltamem.training.places.builder.openings", lambda *_: few)
    for module in ("builder", "collector"):
        monkeypatch.setattr(f"deltamem.training.places.{module}.is_number", numeric.__contains__)
    banks = [build_bank(passes, people, IDLE, 2, begun=share) for share in (0.0, 0.3, 1.0)]
    none, some, every = (bank.opening_numbers for bank in banks)
    assert not len(none)
    assert (
        int(some.sum()) == int(every.sum()) == sum(len(passes.form.text(q.answer)) for q in few if q.topic in numeric)
    )
    assert 0 < len(some) < len(every)
