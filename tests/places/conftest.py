"""A small backbone and a bank of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AddedToken

from deltamem.chat_format import ChatFormat
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Beginnings
from deltamem.training.places.bank import Bank
from deltamem.training.places.builder import DIFFICULTY, build_bank
from tests.conftest import make_memory, make_model, make_tokenizer
from tests.test_training import Words, few_people

OPTIONS: dict[str, Any] = {
    "delta_heads": ("o",),
    "corrections": "last",
    "state_update_mode": "no_lambda",
    "rankwise_gates": False,
    "read_gate": True,
    "base_state": True,
}
IDLE = [Question("hello", "yes", kind="ordinary")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Every byte is a token, and so are words to be remembered, after a space."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in Words().vocabulary])
    return tokenizer


@pytest.fixture(params=["own", "pair"])
def passes(tokenizer: Any, request: pytest.FixtureRequest) -> Passes:
    keys = {"keys": request.param, "own_share": 0.5 if request.param == "pair" else 1.0}
    memory = make_memory(make_model().requires_grad_(False), num_state_heads=2, **keys, **OPTIONS)
    return Passes(memory, ChatFormat.of(tokenizer))


@pytest.fixture
def people() -> SyntheticPeople:
    return few_people()


@pytest.fixture
def bank(passes: Passes, people: SyntheticPeople) -> Bank:
    return build_bank(passes, people, IDLE, 12, seed=5)


@pytest.fixture(autouse=True)
def short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a backbone says its few tokens after fewer steps."""
    monkeypatch.setattr("deltamem.training.places.start._SAYING_STEPS", 200)


@pytest.fixture(autouse=True)
def short_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a backbone learns no words put together from single letters; `tests/test_words.py` has those."""
    monkeypatch.setattr("deltamem.episodes.values.beginnings", lambda *_: Beginnings([], [], frozenset()))
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", replace(DIFFICULTY, long_values=0.4))
