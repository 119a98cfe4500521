"""Training on hidden states that are worked out once, against the passes it stands in for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.prefixes import answer_batch, read_answers, read_prefixes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.state import MemoryState
from deltamem.training.cached.bank import Bank, build_bank
from deltamem.training.cached.draw import draw
from deltamem.training.cached.step import CachedStep
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team
from deltamem.training.trainer import Trainer
from tests.conftest import make_memory, make_model
from tests.test_training import few_people

OPTIONS: dict[str, Any] = {"state_update_mode": "no_lambda", "rankwise_gates": False, "read_gate": True}


@pytest.fixture
def passes(tokenizer: Any) -> Passes:
    memory = make_memory(make_model().requires_grad_(False), delta_heads=("o",), **OPTIONS)
    return Passes(memory, ChatFormat.of(tokenizer))


@pytest.fixture
def people() -> SyntheticPeople:
    return few_people()


@pytest.fixture
def bank(passes: Passes, people: SyntheticPeople) -> Bank:
    return build_bank(passes, people, [Question("hello", "yes", kind="ordinary")], 12)


def test_answers_after_a_prefix_are_those_of_the_whole_window(passes: Passes, people: SyntheticPeople) -> None:
    """With nothing to read in the question itself: that is what the cache leaves out."""
    rng = random.Random(1)
    episodes = [people.episode(rng, Difficulty(facts=2), "train") for _ in range(3)]
    asked = [(i, q) for i, e in enumerate(episodes) for q in e.questions]
    state = passes.write(write_batch(passes.form, episodes), local_gradient=False)
    empty = MemoryState(torch.zeros_like(state.tensor), state.layers)
    whole = passes.read(read_batch(passes.form, asked), empty)
    prefixes = read_prefixes(passes, [q.text for _, q in asked], batch=2)
    answers = [passes.form.text(q.answer) + passes.form.following[:1] for _, q in asked]
    rows = [(row, p, a, (0,) * len(a)) for (row, _), p, a in zip(asked, prefixes, answers, strict=True)]
    torch.testing.assert_close(read_answers(passes, prefixes, answer_batch(rows), empty), whole, atol=1e-4, rtol=1e-4)
    # And the state is read: other rows, other answers.
    full = read_answers(passes, prefixes, answer_batch(rows), state)
    turned = [((row + 1) % 3, *rest) for row, *rest in rows]
    assert (full - read_answers(passes, prefixes, answer_batch(turned), state)).abs().max() > 1e-3  # type: ignore[arg-type]


def test_a_unit_holds_what_the_layers_see(passes: Passes, people: SyntheticPeople, bank: Bank) -> None:
    """One unit written from the bank leaves the state that reading it with a shut read gate leaves."""
    with torch.no_grad():
        for layer in passes.memory.adapter:
            layer.read_gate_bias.fill_(-60.0)
    rng = random.Random("bank-0")
    episodes = [people.episode(rng, _difficulty(), "train") for _ in range(12)]
    for episode, unit in zip(episodes[:4], bank.units, strict=False):
        expected = passes.write(write_batch(passes.form, [episode]), local_gradient=False).tensor
        for i, layer in enumerate(passes.memory.adapter):
            x = unit.hidden[i][None].float()
            state = layer.write(layer.told(x), torch.zeros(1, 1, 8, 8))  # type: ignore[union-attr, operator]
            torch.testing.assert_close(state, expected[i], atol=0.03, rtol=0.03)  # the bank is in bfloat16


def _difficulty() -> Difficulty:
    from deltamem.training.cached.bank import DIFFICULTY

    return DIFFICULTY


def test_histories_hold_different_facts_and_ask_about_them(bank: Bank) -> None:
    for seed in range(20):
        drawn = draw(random.Random(seed), bank, histories=4, facts=3, talk=2, questions=10)
        assert 0 < len(drawn.asked) <= 10 and {row for row, *_ in drawn.asked} <= set(range(4))
        assert (drawn.values <= drawn.valid).all() and not (drawn.values & drawn.talk).any()
        assert drawn.hidden.shape[1:3] == drawn.valid.shape and (drawn.hidden[:, ~drawn.valid] == 0).all()
        for row in range(4):
            numbers = drawn.about[row][drawn.values[row]].unique().tolist()
            assert len(numbers) >= 1
        for _, prefix, answer, marks in drawn.asked:
            assert len(answer) == len(marks) and len(prefix.cache) > 0


def gradients(
    passes: Passes, bank: Bank, ordinary: OrdinaryTalk, team: Team, seed: int = 0
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    passes.memory.adapter.requires_grad_(True)
    passes.memory.adapter.zero_grad()
    recipe = Recipe(cached_questions=12, cached_facts=4, cached_talk=1, ordinary=1)
    parts = CachedStep(passes, recipe, bank, ordinary, team).backward(seed)
    return parts, {n: p.grad.clone() for n, p in passes.memory.adapter.named_parameters() if p.grad is not None}


class Half(Team):
    """One of two processes, alone."""

    def __init__(self, rank: int) -> None:
        super().__init__(cpu=True)
        self._own = rank

    @property
    def size(self) -> int:
        return 2

    def share(self, items: Sequence[Any]) -> list[Any]:
        return list(items[self._own :: 2])


def test_the_shares_of_two_processes_add_up(passes: Passes, people: SyntheticPeople, tmp_path: Path) -> None:
    ordinary = OrdinaryTalk(passes, people, 2, 0, tmp_path)
    bank = build_bank(passes, people, ordinary.questions, 12)
    whole, grads = gradients(passes, bank, ordinary, Team(cpu=True))
    assert {"value", "start", "rest", "ordinary", "gates", "overlap", "loss", "accuracy"} <= whole.keys()
    halves = [gradients(passes, bank, ordinary, Half(rank)) for rank in (0, 1)]
    for name, grad in grads.items():
        torch.testing.assert_close(sum(h[1][name] for h in halves), grad, atol=1e-5, rtol=1e-3)
    assert sum(h[0]["value"] for h in halves) == pytest.approx(whole["value"], rel=1e-4)


def test_cached_steps_learn_and_make_way_for_whole_ones(tmp_path: Path, tokenizer: Any) -> None:
    people = few_people()
    people.relations = people.relations[:2]
    memory = make_memory(make_model().requires_grad_(False), delta_heads=("o",), **OPTIONS)
    recipe = Recipe(steps=62, cached_steps=60, bank=8, cached_questions=8, cached_facts=2, cached_talk=1, batch=2,
                    questions=2, warmup=2, ordinary=1, reply_tokens=2, eval_every=100, save_every=10, seed=1,
                    learning_rate=1e-2)  # fmt: skip
    said: list[str] = []
    trainer = Trainer(
        Passes(memory, ChatFormat.of(tokenizer)), recipe, tmp_path, people, team=Team(cpu=True),
        preparing=lambda what, _share: said.append(what),
    )  # fmt: skip
    reports = list(trainer.run())
    losses = [r.parts["value"] for r in reports[:60]]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert "gates" in reports[59].parts and "gates" not in reports[60].parts and len(reports) == 62
    assert "reading facts" in said and trainer.curriculum.steps == 2


def test_a_resumed_run_of_cached_steps_is_the_unbroken_one(tmp_path: Path, tokenizer: Any) -> None:
    def make(directory: Path, steps: int) -> Trainer:
        memory = make_memory(make_model().requires_grad_(False), delta_heads=("o",), **OPTIONS)
        recipe = Recipe(steps=steps, decay=0.0, cached_steps=4, bank=8, cached_questions=8, cached_facts=2, warmup=2,
                        batch=2, questions=2, ordinary=0, eval_every=100, save_every=2, seed=1)  # fmt: skip
        passes = Passes(memory, ChatFormat.of(tokenizer))
        return Trainer(passes, recipe, directory, few_people(), team=Team(cpu=True))

    whole = [r.loss for r in make(tmp_path / "a", 6).run()]
    first = [r.loss for r in make(tmp_path / "b", 2).run()]
    again = make(tmp_path / "b", 6)
    again.resume()
    assert first + [r.loss for r in again.run()] == pytest.approx(whole, rel=1e-4)
