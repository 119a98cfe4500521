"""Directions that keys and queries are fitted in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deltamem.training.places import directions
from deltamem.training.places.bank import Topic
from deltamem.training.places.directions import SHARES, Directions, Groups, Share, agreeing
from deltamem.training.places.names import Named

SORTS, NOUNS, SIZE = 12, 3, 48


def heard(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of nouns of sorts, and the noun of each: a sort shows far more than a noun of it."""
    generator = torch.Generator().manual_seed(7)
    sorts = 4 * torch.randn(SORTS, SIZE, generator=generator).repeat_interleave(NOUNS, 0)
    nouns = sorts + torch.randn(SORTS * NOUNS, SIZE, generator=generator)
    about = torch.arange(len(nouns)).repeat(20)
    noise = torch.randn(len(about), SIZE, generator=generator.manual_seed(seed))
    return nouns[about] + 1.5 * noise, about


def test_directions_go_on_where_the_first_ones_end() -> None:
    (x, about), (y, _) = heard(0), heard(1)
    every, later = agreeing(x, about, y, about, 12), agreeing(x, about, y, about, 8, first=4)
    for first, then in zip(every, later, strict=True):
        torch.testing.assert_close(first[4:], then)
    assert not agreeing(x, about, y, about, 8, first=60)[0].any(), "there are none after so many"


def test_names_of_a_sort_are_told_apart_by_what_they_differ_in() -> None:
    (x, about), (y, _), (told, _), (asked, _) = (heard(seed) for seed in range(4))
    sorts = torch.arange(SORTS * NOUNS) // NOUNS

    def right(groups: Groups | None) -> float:
        keys, queries = agreeing(x, about, y, about, SORTS - 2, groups=groups)
        k, q = F.normalize((told - x.mean(0)) @ keys.T), F.normalize((asked - y.mean(0)) @ queries.T)
        near = (q @ k.T).masked_fill(sorts[about][:, None] != sorts[about], -2)
        return float((about[near.argmax(1)] == about).float().mean())

    within = right(Groups.of(sorts.tolist(), 2))
    assert within > right(None) + 0.2 and within > 0.8


def test_what_a_small_group_has_in_common_says_what_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    means, weight = torch.randn(6, 5, generator=generator), torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0, 0.0])
    apart = Groups.of(["a", "a", "b", "b", "b", None], 2).apart(means, weight)
    torch.testing.assert_close(apart[:2], means[:2] - (means[0] + 3 * means[1]) / 4)
    torch.testing.assert_close(apart[2] + apart[3], torch.zeros(5))
    torch.testing.assert_close(Groups.of(["a", "a", "b", "b", "b", None], 3).apart(means, weight), means)


def test_layers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [(Topic(relation, ""), before) for relation in ("sister", "brother") for before in (None, 4)]
    about = torch.arange(4).repeat(6)
    taken: list[tuple[int, Any]] = []

    def seen(x: Any, _xa: Any, y: Any, _ya: Any, count: int, first: int, groups: Groups | None) -> Any:
        taken.append((first, None if groups is None else groups.numbers.tolist()))
        return x[:count], y[:count]

    monkeypatch.setattr(directions, "agreeing", seen)
    named = Named(torch.arange(24), about, torch.arange(24), about, names)
    hidden = torch.zeros(24, 64)
    for layer in range(len(SHARES) + 1):
        Directions(named).fitted(layer, hidden, hidden, 16)
    first_tokens = taken[0][1]
    assert [n >= 0 for n in first_tokens] == [True, False, True, False]
    assert taken == [(0, first_tokens), (16, None), (16, first_tokens), (0, [0, 0, 1, 1]), taken[0]]
    Directions(named, (Share("all", 1),)).fitted(0, hidden, hidden, 24)
    assert taken[-1] == (0, None), "a layer that takes a third of all directions takes the first"
