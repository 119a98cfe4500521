"""Training: what is written and asked, the starting point, and a run that can be killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import Difficulty, SyntheticPeople
from deltamem.errors import DataError
from deltamem.training.curriculum import WaitingCurriculum
from deltamem.training.recipe import Recipe
from deltamem.training.trainer import Trainer
from deltamem.training.warm_start import copy_directions, fit_addressing
from tests.conftest import Words, make_memory, make_model


def test_a_curriculum_waits_until_a_stage_is_mastered() -> None:
    curriculum = WaitingCurriculum(stages=(Difficulty(pool=1), Difficulty(pool=2)), mark=0.8, patience=5)
    for _ in range(30):
        assert not curriculum.update(0.7)
    moved = [curriculum.update(1.0) for _ in range(8)]
    assert sum(moved) == 1 and curriculum.stage == 1
    assert curriculum.accuracy < 0.8  # it starts low again
    assert not any(curriculum.update(1.0) for _ in range(50)), "the last stage has no end"


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup=10, decay=0.4, learning_rate=1.0)
    rates = [recipe.rate(s) for s in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[30] == rates[59] == 1.0
    assert rates[60:] == sorted(rates[60:], reverse=True) and rates[-1] < 0.01
    assert Recipe(steps=100, warmup=1, decay=1.0).rate(50) == pytest.approx(1e-3)


def few_people() -> SyntheticPeople:
    """A generator small enough for a tiny model with one token a byte."""
    people = SyntheticPeople(Words())
    people.relations, people.small_talk = people.relations[:4], people.small_talk[:2]
    people.ordinary = {"train": people.ordinary["train"][:3], "heldout": []}
    return people


def make_trainer(directory: Path, tokenizer: Any, people: SyntheticPeople, **options: Any) -> Trainer:
    memory = make_memory(make_model().requires_grad_(False), state_update_mode="no_lambda")
    recipe = Recipe(**{"steps": 6, "batch": 3, "questions": 4, "warmup": 2, "ordinary": 1, "reply_tokens": 2,
                       "eval_every": 100, "save_every": 3, "seed": 1} | options)  # fmt: skip
    return Trainer(Passes(memory, ChatFormat.of(tokenizer)), recipe, directory, people)


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, tokenizer: Any) -> None:
    whole = make_trainer(tmp_path / "whole", tokenizer, few_people())
    losses = [r.loss for r in whole.run()]
    assert len(losses) == 6

    broken = make_trainer(tmp_path / "broken", tokenizer, few_people())
    run = broken.run()
    first = [next(run).loss for _ in range(4)]  # one step past the checkpoint, then killed
    run.close()
    again = make_trainer(tmp_path / "broken", tokenizer, few_people())
    again.resume()
    assert again.step == 3
    rest = [r.loss for r in again.run()]
    assert first[:3] + rest == pytest.approx(losses, abs=1e-5)
    for name, tensor in whole.passes.memory.adapter_tensors().items():
        torch.testing.assert_close(again.passes.memory.adapter_tensors()[name], tensor, atol=1e-5, rtol=1e-3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, tokenizer: Any, people: SyntheticPeople) -> None:
    trainer = make_trainer(tmp_path, tokenizer, people)
    with pytest.raises(DataError, match="no checkpoint"):
        trainer.resume()
    trainer.save()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="damaged"):
        trainer.resume()


def test_training_learns(tmp_path: Path, tokenizer: Any) -> None:
    """A tiny random model can't chat, but with a few values the loss on them must fall."""
    people = few_people()
    people.relations = people.relations[:2]
    trainer = make_trainer(tmp_path, tokenizer, people, steps=40, batch=4, ordinary=0, learning_rate=1e-2)
    losses = [r.value_loss for r in trainer.run()]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert trainer.passes.memory.state.batch_size == 1
    assert (tmp_path / "delta_mem_adapter.safetensors").is_file()


def test_the_warm_start_lets_questions_find_what_was_told(tokenizer: Any) -> None:
    people = SyntheticPeople(Words())
    people.relations = people.relations[:6]
    memory = make_memory(make_model().requires_grad_(False), state_update_mode="no_lambda", alpha=16.0)
    passes = Passes(memory, ChatFormat.of(tokenizer))
    before = [layer.memory_k_proj.detach().clone() for layer in memory.adapter]  # type: ignore[union-attr, operator]
    copy_directions(memory)
    accuracy = fit_addressing(memory, passes, people, episodes=48, steps=300)
    # A random backbone says little about what a token is part of; one in twelve would be chance.
    assert len(accuracy) == 3 and min(accuracy) > 1.5 / 12
    assert all((b != a.memory_k_proj).any() for b, a in zip(before, memory.adapter, strict=True))
    layer = memory.adapter[0]
    torch.testing.assert_close(
        layer.memory_v_proj @ layer.delta_o_proj,  # type: ignore[union-attr, operator]
        torch.diag(torch.diagonal(layer.memory_v_proj @ layer.delta_o_proj)),  # type: ignore[union-attr, operator]
        atol=1e-5,
        rtol=1e-4,
    )
