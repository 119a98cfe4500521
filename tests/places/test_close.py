"""What is close to what was told, and was not told itself."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deltamem.episodes.passes import Passes
from deltamem.training.places import close, lots, reading
from deltamem.training.places.bank import Bank
from deltamem.training.places.close import Close, expected_at
from deltamem.training.places.draw import Drawing
from deltamem.training.places.reading import fit_reading
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.states import states_of
from deltamem.training.places.step import PlacesStep
from deltamem.training.places.tail import Tail
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team
from deltamem.training.warm_start import delta_layers
from tests.places.test_nearness import NEAR, of_each


def test_what_was_told_is_asked_for_beside_what_is_close_and_was_not(bank: Bank) -> None:
    both = of_each(bank, ("", "Anna"))
    topics = [fact.topic for fact in both.facts]
    drawn = Close(Drawing(both), both, NEAR).histories(random.Random(0), 60)
    never_told, beside = 0, 0
    for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
        told = [topics[t] for t in drawn.told[row][drawn.valid[row]].tolist()]
        asked = topics[place // 2]
        beside += any(a.relation in NEAR[b.relation] for a in told for b in told)
        if target == both.unsaid and asked not in told:
            never_told += 1
            assert any(asked.relation in NEAR[t.relation] and asked.owner == t.owner for t in told)
        else:
            said = drawn.said[row][drawn.told[row] == topics.index(asked)]
            assert target in both.told_ids[said]
    assert never_told > 20 and beside > 20
    assert {t.relation for t in (topics[n] for n in drawn.told[drawn.valid].tolist())} == set(NEAR)
    alone = Close(Drawing(both), both, {}).histories(random.Random(0), 5)
    assert not len(alone.places), "nothing is near anything"


def test_facts_are_told_most_whose_values_the_backbone_expects(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = of_each(bank, ("", "Anna"))
    expected = {fact.asked[0] for fact in both.facts if fact.topic.owner == "Anna"}
    monkeypatch.setattr(close, "expected_at", lambda places, *_: expected & set(places))
    drawn = Close(Drawing(both), both, NEAR, Tail(passes.memory)).histories(random.Random(0), 80)
    owners = [both.facts[t].topic.owner for t in drawn.told[drawn.valid].tolist()]
    assert 0.8 < owners.count("Anna") / len(owners) < 1


def test_what_the_backbone_expects_is_what_it_thinks_likely(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, tail = of_each(bank), Tail(passes.memory)
    monkeypatch.setattr(close, "_LIKELIEST", len(bank.candidates) // 3)
    firsts = [fact.asked[0] for fact in whole.facts]
    found = expected_at(firsts, whole, tail)
    assert found <= set(firsts) and 0 < len(found) < len(firsts)
    with torch.no_grad():
        logits = tail(whole.residuals[firsts].float(), whole.candidates)
    for place, each in zip(firsts, logits, strict=True):
        own = each[(whole.candidates == whole.targets[place])]
        assert (place in found) == (int((each > own).sum()) < len(bank.candidates) // 3)
    early = replace(whole, facts=[replace(fact, early=True) for fact in whole.facts])
    drawn = Close(Drawing(early), early, NEAR, tail).histories(random.Random(0), 5)
    assert not len(drawn.places), "where the value comes first nothing is known to be close"


def test_reading_learns_that_what_is_close_was_not_told(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = of_each(bank)
    start_from(passes.memory, whole)
    passes.memory.adapter.requires_grad_(True)
    there = {name: tensor.clone() for name, tensor in passes.memory.adapter.state_dict().items()}
    monkeypatch.setattr(reading, "nearest", lambda _bank: NEAR)
    for other in ("_BEGUN", "_STATED", "_SAID", "_KEPT", "_QUIET", "_ALONE"):
        monkeypatch.setattr(reading, other, 0.01)

    def left(weight: float) -> float:
        """Cross-entropy of what was not told after steps in which what is close has this weight."""
        passes.memory.adapter.load_state_dict(there)
        fit_reading(passes.memory, whole, 100, close_weight=weight)
        drawn = Close(Drawing(whole), whole, NEAR).histories(random.Random(1), 60)
        at, rows = (numbers[drawn.targets == whole.unsaid] for numbers in (drawn.places, drawn.rows))
        now, tail = Stacked(delta_layers(passes.memory)), Tail(passes.memory)
        with torch.no_grad():
            states = states_of(now, whole, drawn)
            logits = tail(now.bent(whole.places[:, at], whole.residuals[at], states, rows))
        return float(F.cross_entropy(logits, torch.full_like(at, whole.unsaid)))

    assert left(2.0) < 0.9 * left(0.0)
    after = passes.memory.adapter.state_dict()
    assert all(torch.equal(after[name], there[name]) for name in there if "_k_" in name or "_v_" in name)


def test_steps_on_places_learn_it_with_the_keys(passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "nearest", lambda _bank: NEAR)
    whole = of_each(bank)
    recipe = Recipe(cached_questions=40, cached_facts=4, close_weight=10.0, ordinary_weight=0.0, seed=2)
    step = PlacesStep(passes, recipe, whole, Team(cpu=True))
    passes.memory.adapter.requires_grad_(True)
    optimizer = torch.optim.Adam(passes.memory.adapter.parameters(), lr=1e-2)
    found = []
    for number in range(40):
        optimizer.zero_grad()
        found.append(step.backward(number))
        optimizer.step()
    first, last = (sum(f["close"] + f["never"] for f in some) for some in (found[:5], found[-5:]))
    assert last < 0.95 * first, "so small a backbone learns little of it"

    def of_keys(weight: float) -> torch.Tensor:
        passes.memory.adapter.zero_grad()
        PlacesStep(passes, replace(recipe, close_weight=weight), whole, Team(cpu=True)).backward(0)
        grad = delta_layers(passes.memory)[0].memory_k_proj.grad
        assert grad is not None
        return grad.clone()

    assert not torch.allclose(of_keys(10.0), of_keys(0.0), rtol=1e-2)
    weighed = PlacesStep(passes, replace(recipe, close_weight=12.0), whole, Team(cpu=True)).backward(0)
    plain = PlacesStep(passes, recipe, whole, Team(cpu=True)).backward(0)
    assert weighed["loss"] - plain["loss"] == pytest.approx(2 * (1.5 * plain["close"] + plain["never"]), rel=1e-3)
    without = PlacesStep(passes, replace(recipe, close_weight=0.0), whole, Team(cpu=True)).backward(0)
    assert "close" not in without and without["loss"] < plain["loss"]
