"""What is to be said is told apart from some of all candidates as it would be from all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deltamem.training.places.among import Among, some_among

CANDIDATES = torch.arange(3, 3000, 3)
SAID = torch.tensor([30, 9, 30, 2997])


class Logits:
    """A tail that makes the same logits of any residuals."""

    def __init__(self) -> None:
        self.every = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1))

    def __call__(self, residuals: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.every[: len(residuals), tokens]


def drawn(count: int, seed: int = 0) -> Among:
    return some_among(CANDIDATES, SAID, count, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_what_is_said_is_there_and_so_many_others() -> None:
    among = drawn(40)
    assert len(among.ids) == 3 + 40 and torch.equal(among.ids, among.ids.unique())
    assert torch.isin(among.ids, CANDIDATES).all()
    assert torch.equal(among.ids[among.numbers(SAID)], SAID)
    assert not among.raised[among.numbers(SAID)].any()
    # All of the candidates are stood for.
    assert float(among.raised.exp().sum()) == pytest.approx(len(CANDIDATES), rel=1e-5)


def test_what_is_said_need_not_be_a_candidate() -> None:
    said = torch.tensor([1, 30, 2999, 2997])
    among = some_among(CANDIDATES, said, 10_000, torch.Generator(), torch.device("cpu"))
    assert torch.equal(among.ids, torch.cat([CANDIDATES, said]).unique()) and not among.raised.any()


def test_with_room_for_all_nothing_is_drawn() -> None:
    among = drawn(10_000)
    assert torch.equal(among.ids, CANDIDATES) and not among.raised.any()


def test_nothing_but_what_is_said() -> None:
    said = some_among(SAID.unique(), SAID, 5, torch.Generator(), torch.device("cpu"))
    assert torch.equal(said.ids, SAID.unique()) and not said.raised.any()


def test_the_loss_is_the_one_among_all_but_for_chance() -> None:
    tail: Any = Logits()
    residuals, targets = torch.zeros(4, 1), torch.tensor([30, 9, 30, 2997])
    whole = F.cross_entropy(tail(residuals, CANDIDATES), torch.searchsorted(CANDIDATES, targets))

    def among(seed: int, raised: bool = True) -> float:
        some = drawn(100, seed)
        logits = some.logits(tail, residuals) if raised else tail(residuals, some.ids)
        return float(F.cross_entropy(logits, some.numbers(targets)))

    found = [among(seed) for seed in range(50)]
    assert sum(found) / len(found) == pytest.approx(float(whole), abs=0.1)
    assert among(0, raised=False) < float(whole) - 1


def test_the_likeliest_is_not_one_that_stands_for_many() -> None:
    tail: Any = Logits()
    tail.every[:, 30] = tail.every.max() + 1
    among = drawn(100)
    logits = among.logits(tail, torch.zeros(4, 1))
    assert (among.ids[among.likeliest(logits)] == 30).all()
    assert (among.ids[logits.argmax(-1)] != 30).any()
