"""What is close to what was told, and was not told itself."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deltamem.episodes.passes import Passes
from deltamem.training.places import close, reading
from deltamem.training.places.bank import Bank
from deltamem.training.places.close import Close, expected_at
from deltamem.training.places.draw import Drawing
from deltamem.training.places.reading import fit_reading
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.states import states_of
from deltamem.training.places.tail import Tail
from deltamem.training.warm_start import delta_layers
from tests.places.test_nearness import NEAR, of_each


def test_what_was_told_is_asked_for_beside_what_is_close_and_was_not(bank: Bank) -> None:
    both = of_each(bank, ("", "Anna"))
    topics = [fact.topic for fact in both.facts]
    drawn = Close(Drawing(both), both, NEAR, set()).histories(random.Random(0), 60)
    assert drawn is not None
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
    assert Close(Drawing(both), both, {}, set()).histories(random.Random(0), 5) is None, "nothing is near anything"


def test_facts_are_told_most_whose_values_the_backbone_expects(bank: Bank) -> None:
    both = of_each(bank, ("", "Anna"))
    expected = {fact.asked[0] for fact in both.facts if fact.topic.owner == "Anna"}
    drawn = Close(Drawing(both), both, NEAR, expected).histories(random.Random(0), 80)
    assert drawn is not None
    owners = [both.facts[t].topic.owner for t in drawn.told[drawn.valid].tolist()]
    assert 0.8 < owners.count("Anna") / len(owners) < 1


def test_what_the_backbone_expects_is_what_it_thinks_likely(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, tail = of_each(bank), Tail(passes.memory)
    monkeypatch.setattr(close, "_LIKELIEST", len(bank.candidates) // 3)
    found = expected_at(Drawing(whole), whole, tail)
    firsts = [fact.asked[0] for fact in whole.facts]
    assert found <= set(firsts) and 0 < len(found) < len(firsts)
    with torch.no_grad():
        logits = tail(whole.residuals[firsts].float(), whole.candidates)
    for place, each in zip(firsts, logits, strict=True):
        own = each[(whole.candidates == whole.targets[place])]
        assert (place in found) == (int((each > own).sum()) < len(bank.candidates) // 3)
    early = replace(whole, facts=[replace(fact, early=True) for fact in whole.facts])
    assert not expected_at(Drawing(early), early, tail), "where the value comes first nothing is known to be close"


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
        monkeypatch.setattr(reading, "_CLOSE_TOLD", weight)
        monkeypatch.setattr(reading, "_CLOSE_NOT_TOLD", weight)
        passes.memory.adapter.load_state_dict(there)
        fit_reading(passes.memory, whole, 100)
        drawn = Close(Drawing(whole), whole, NEAR, set()).histories(random.Random(1), 60)
        assert drawn is not None
        at, rows = (numbers[drawn.targets == whole.unsaid] for numbers in (drawn.places, drawn.rows))
        now, tail = Stacked(delta_layers(passes.memory)), Tail(passes.memory)
        with torch.no_grad():
            states = states_of(now, whole, drawn)
            logits = tail(now.bent(whole.places[:, at], whole.residuals[at], states, rows))
        return float(F.cross_entropy(logits, torch.full_like(at, whole.unsaid)))

    assert left(2.0) < 0.9 * left(0.0)
