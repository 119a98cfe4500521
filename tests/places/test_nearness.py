"""Relations that are near each other: told together, and held apart."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from deltamem.episodes.passes import Passes
from deltamem.episodes.sorts import sort_of
from deltamem.training.places import draw
from deltamem.training.places.bank import Bank, Fact, Topic
from deltamem.training.places.draw import Drawing
from deltamem.training.places.lots import Lots
from deltamem.training.places.nearness import nearest
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.step import PlacesStep
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team
from deltamem.training.warm_start import delta_layers

NEAR = {"dog": ["puppy"], "puppy": ["dog"], "sister": ["brother"], "brother": ["sister"]}
OTHERS = ["horse", "goat", "yacht", "canary", "mother", "boss", "neighbour", "teacher"]


def of_each(bank: Bank, owners: tuple[str, ...] = ("",)) -> Bank:
    """One fact about each relation of each owner, with hidden states of its own: nouns that are near have theirs in
    common, but for a little.
    """
    generator = torch.Generator().manual_seed(0)
    topics = [Topic(relation, owner) for owner in owners for relation in (*NEAR, *OTHERS)]
    count, (layers, _, size) = len(topics), bank.told.shape
    hidden = torch.randn(layers, count, size, generator=generator)
    own = {topic: n for n, topic in enumerate(topics)}
    for relation, (other,) in NEAR.items():
        for owner in owners:
            if relation < other:
                hidden[:, own[Topic(other, owner)]] = hidden[:, own[Topic(relation, owner)]]
    hidden += 0.1 * torch.randn(hidden.shape, generator=generator)
    hidden = hidden.to(bank.told)
    ids = bank.candidates[torch.arange(count) % len(bank.candidates)]
    return replace(
        bank,
        facts=[Fact(topic, told=[n], asked=[2 * n + 1]) for n, topic in enumerate(topics)],
        unknown=[],
        told=hidden,
        before=hidden if bank.before.shape[1] else bank.before,
        told_ids=ids,
        places=hidden.repeat_interleave(2, dim=1),
        residuals=bank.residuals[torch.arange(2 * count) % len(bank.residuals)],
        targets=ids.repeat_interleave(2),
        values=torch.arange(2 * count) % 2 > 0,
    )


def test_the_nearest_are_those_whose_replies_look_alike(bank: Bank) -> None:
    found = nearest(of_each(bank))
    assert {relation: found[relation][0] for relation in NEAR} == {r: near[0] for r, near in NEAR.items()}
    assert all(sort_of(other) == sort_of(relation) for relation, others in found.items() for other in others)
    assert all(relation not in others for relation, others in found.items())


def test_near_ones_are_told_together_and_asked_for_where_they_were_not(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = of_each(bank, ("", "Anna"))
    topics = [fact.topic for fact in both.facts]
    monkeypatch.setattr(draw, "_TOLD_TWICE", 0.0)
    monkeypatch.setattr(draw, "_SWAPPED", 0.0)

    def pairs_and_never_told(near: dict[str, list[str]]) -> tuple[float, float]:
        drawn = Drawing(both, near).histories(random.Random(1), 2, 400, 1.0, 4000)
        told = [[topics[t] for t in row[ok].tolist()] for row, ok in zip(drawn.told, drawn.valid, strict=True)]
        assert all(len(set(some)) == 2 for some in told)
        paired = [a.relation in NEAR.get(b.relation, []) and a.owner == b.owner for a, b in told]
        unsaid = drawn.targets == both.unsaid
        asked = zip(drawn.places[unsaid].tolist(), drawn.rows[unsaid].tolist(), strict=True)
        near_one = [any(topics[p // 2].relation in NEAR.get(t.relation, []) for t in told[row]) for p, row in asked]
        return sum(paired) / len(paired), sum(near_one) / len(near_one)

    (often, asked_often), (seldom, asked_seldom) = pairs_and_never_told(NEAR), pairs_and_never_told({})
    assert seldom < 0.08 and often > seldom + 0.1
    assert asked_often > asked_seldom + 0.04


def test_what_is_held_apart_is_of_one_topic_each_and_often_of_one_sort(bank: Bank) -> None:
    both = of_each(bank, ("", "Anna", "Peter"))
    drawing = Drawing(both)
    sorts = []
    for seed in range(20):
        told, places = drawing.apart(random.Random(seed), 12).tolist()
        assert told == [place // 2 for place in places], "the key and the query of one topic"
        assert len(set(told)) == len(told)
        topics = [both.facts[n].topic for n in told]
        sorts.append(max(sum(sort_of(t.relation) == sort_of(u.relation) for u in topics) for t in topics) / len(topics))
    assert sum(sorts) / len(sorts) > 0.6
    assert Drawing(bank).apart(random.Random(0), 0).shape == (2, 0)


def test_holding_apart_keeps_a_query_to_its_own_key(passes: Passes, bank: Bank) -> None:
    whole = of_each(bank)
    recipe = Recipe(cached_questions=24, cached_facts=4, apart_weight=1.0, seed=2)
    step = PlacesStep(passes, recipe, whole, Team(cpu=True))
    every = torch.arange(len(whole.facts))
    numbers = torch.stack([every, 2 * every + 1])
    with torch.no_grad():
        for n, parameter in passes.memory.adapter.named_parameters():
            if n.endswith("delta_o_proj"):
                parameter.normal_()  # what is not heard counts for nothing
            if n.endswith("memory_q_proj"):
                parameter.copy_(passes.memory.adapter.get_parameter(n.replace("_q_", "_k_")))
    trained = [p for n, p in passes.memory.adapter.named_parameters() if n.endswith(("memory_q_proj", "memory_k_proj"))]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    losses = []
    for n in range(60):
        step._generator.manual_seed(n)
        step._layers = Stacked(delta_layers(passes.memory))
        loss = step._held_apart(numbers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    mute = delta_layers(passes.memory)[0]
    mute.delta_o_proj.data.zero_()
    step._layers = Stacked(delta_layers(passes.memory))
    optimizer.zero_grad()
    step._held_apart(numbers).backward()
    assert not mute.memory_k_proj.grad.any(), "what is not heard need not be held apart"
    figures = step.backward(0)
    assert figures["apart"] > 0
    without = PlacesStep(passes, replace(recipe, apart_weight=0.0), whole, Team(cpu=True))
    assert "apart" not in without.backward(0)


def test_lots_bring_what_is_held_apart_only_where_it_counts(bank: Bank) -> None:
    whole, recipe = of_each(bank), Recipe(cached_questions=24, cached_facts=4, seed=2)
    assert Lots(whole, recipe).draw(0).apart.shape == (2, 0)
    assert Lots(whole, replace(recipe, apart_weight=1.0)).draw(0).apart.shape[1] > 6
