"""What memory changes of the replies to ordinary questions."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.evaluation import ordinary as ordinary_module
from deltamem.evaluation.ordinary import ordinary
from tests.conftest import Words, make_memory, make_model


@pytest.fixture
def passes(tokenizer: Any) -> Passes:
    return Passes(make_memory(make_model()), ChatFormat.of(tokenizer))


def test_what_memory_changes_of_ordinary_replies_is_seen(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary_module, "IMPERSONAL", 3)
    people = SyntheticPeople(Words())
    people.ordinary = {"train": [], "heldout": ["hello", "why?"]}
    monkeypatch.setattr(ordinary_module, "SyntheticPeople", lambda _tokenizer: people)
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"facts": (1, 2), "tokens": 6, "batch": 2}
    bent = ordinary(passes, **options, report=lambda _stage, n, of: seen.append((n, of)))
    assert [(row["kind"], row["facts"], row["n"]) for row in bent] == [
        ("ordinary", 1, 2), ("ordinary", 2, 2), ("after others", 1, 2), ("after others", 2, 2),
        ("impersonal", 1, 3), ("impersonal", 2, 3),
    ]  # fmt: skip
    assert seen == sorted(seen) and seen[-1] == (23, 23)
    assert all(row["kl"]["mean"] > 1e-3 and row["same"]["mean"] < 1 for row in bent)
    with torch.no_grad():
        for layer in passes.memory.adapter:
            for weight in (layer.delta_o_proj, layer.delta_q_proj):
                weight.zero_()  # type: ignore[operator]
    alike = ordinary(passes, **options)
    assert all(abs(row["kl"]["mean"]) < 1e-4 and row["same"]["mean"] == 1 for row in alike), "it corrects nothing"
    frozen = [[r["frozen"] for row in rows for r in row["replies"]] for rows in (bent, alike)]
    assert frozen[0] == frozen[1] == [r["memory"] for row in alike for r in row["replies"]]


def test_a_prompt_after_others_follows_what_was_told_and_asked_in_its_window() -> None:
    people = SyntheticPeople(Words())
    asked = ordinary_module._Asked("why?", later=True)
    put = [ordinary_module._put(people, random.Random(i), 2, asked) for i in range(20)]
    assert {len(p.question.earlier) for p in put} == {1, 2, 3}
    said = [(turn.text, turn.answer) in p.history for p in put for turn in p.question.earlier]
    assert any(said) and not all(said), "some of it was told, the rest is asked"
    assert ordinary_module._put(people, random.Random(0), 2, ordinary_module._Asked("why?")).question.earlier == ()


def test_what_an_impersonal_question_is_about_was_told(passes: Passes) -> None:
    people = SyntheticPeople(Words())
    asked = [a for a in ordinary_module._impersonal(people) if a.told is not None]
    assert len(asked) > 48
    for a in asked[:20]:
        history = ordinary_module._put(people, random.Random(0), 4, a).history
        noun = a.told.possessed.split()[-1]  # type: ignore[union-attr]
        assert any(noun in turn.user for turn in history) and noun in a.prompt
