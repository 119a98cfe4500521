"""What a step looks at, drawn here and ahead of it."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from typing import Any

import torch

from deltamem.training.places.bank import Bank, part_of
from deltamem.training.places.lots import Ahead, Lot, Lots
from deltamem.training.recipe import Recipe

RECIPE = Recipe(cached_questions=24, cached_facts=16, apart_weight=0.5, close_weight=0.5, seed=3)


def numbers(lot: Lot) -> list[Any]:
    return [*vars(lot.drawn).values(), *vars(lot.close).values(), lot.others, lot.openings, lot.idle, lot.apart]


def test_processes_draw_what_is_drawn_here(bank: Bank) -> None:
    lots = Lots(bank, RECIPE)
    assert len(pickle.dumps(lots)) < bank.bytes / 2, "what is hidden stays here"
    ahead = Ahead(lots, 5, 2)
    for step in range(5, 10):
        here, there = lots.draw(step), ahead.next()
        assert here.seed == there.seed
        assert all(torch.equal(a, b) for a, b in zip(numbers(here), numbers(there), strict=True))


def test_the_easy_steps_tell_little_and_ask_for_little_else(bank: Bank) -> None:
    # A statement that is replied to may tell several things.
    plain = replace(bank, facts=[fact for fact in bank.facts if not fact.noted])

    def drawn(easy_steps: int) -> tuple[int, float]:
        lots = Lots(plain, replace(RECIPE, easy_steps=easy_steps))
        some = [lots.draw(step).drawn for step in range(60)]
        topics = max(len(row[ok].unique()) for d in some for row, ok in zip(d.about, d.valid, strict=True))
        values = torch.cat([d.targets[bank.values[d.places]] for d in some])
        return topics, float((values == bank.unsaid).float().mean())

    (few, seldom), (many, often) = drawn(60), drawn(0)
    assert few <= 4 < many
    assert 0 < seldom < 0.6 * often


def test_half_of_ordinary_talk_is_where_replies_begin(bank: Bank) -> None:
    more = 40
    idle = torch.arange(more) % bank.idle.shape[1]
    begins = torch.arange(more) < 4
    many = replace(bank, idle=bank.idle[:, idle], idle_residuals=bank.idle_residuals[idle], idle_begins=begins)
    drawn = torch.cat([Lots(many, RECIPE).draw(step).idle for step in range(20)])
    assert 0.5 < begins[drawn].float().mean() < 0.65


def test_a_part_of_a_bank_holds_what_its_facts_are_about(bank: Bank) -> None:
    some = random.Random(0).sample(list(bank.facts), 5)
    part = part_of(bank, some)
    assert part.told.shape[1] == len({t for f in some for t in f.told})
    assert part.openings.shape[1] == 0 and part.before.shape[1] in (0, part.told.shape[1])
    for fact, whole in zip(part.facts, some, strict=True):
        assert torch.equal(part.told[:, fact.told], bank.told[:, whole.told])
        assert torch.equal(part.told_ids[fact.told], bank.told_ids[whole.told])
        assert torch.equal(part.places[:, fact.asked], bank.places[:, whole.asked])
        assert torch.equal(part.residuals[fact.asked], bank.residuals[whole.asked])
        assert torch.equal(part.targets[fact.asked], bank.targets[whole.asked])
        assert torch.equal(part.values[fact.asked], bank.values[whole.asked])
