"""Training: what is written and asked, the starting point, and a run that can be killed and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamem import DeltaMemConfig
from deltamem.chat_format import ChatFormat
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.training.curriculum import WaitingCurriculum
from deltamem.training.curves import draw_curves
from deltamem.training.data import parse_mix
from deltamem.training.fitting import fit_memory
from deltamem.training.metrics import Metrics, read_metrics
from deltamem.training.more_heads import put_heads_back
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.recipe import Recipe
from deltamem.training.run import extended
from deltamem.training.step import TrainingStep
from deltamem.training.team import Team
from deltamem.training.trainer import Trainer
from deltamem.training.warm_start import TokenCode
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


def test_a_run_may_end_by_the_clock_and_the_rate_with_it() -> None:
    recipe = Recipe(steps=100, warmup=1, decay=1.0, learning_rate=1.0, minutes=2.0)
    assert recipe.rate(10, 60.0) == pytest.approx(0.5) and recipe.rate(10, 120.0) == 0.0
    assert recipe.rate(50, 10.0) == pytest.approx(0.5), "the steps are nearer to their end"
    assert not recipe.over(99, 119.0) and recipe.over(5, 120.0) and recipe.over(100, 0.0)
    assert not Recipe(steps=100).over(99, 1e9)


def few_people() -> SyntheticPeople:
    """A generator small enough for a tiny model with one token a byte."""
    people = SyntheticPeople(Words())
    people.relations, people.small_talk = people.relations[:4], people.small_talk[:2]
    people.families, people.singles, people.relatives = people.families[:4], people.singles[:4], []
    people.ordinary = {"train": people.ordinary["train"][:3], "heldout": []}
    return people


def make_trainer(directory: Path, tokenizer: Any, people: SyntheticPeople, **options: Any) -> Trainer:
    memory = make_memory(make_model().requires_grad_(False), state_update_mode="no_lambda", read_gate=True)
    recipe = Recipe(**{"steps": 6, "batch": 3, "questions": 4, "warmup": 2, "ordinary": 1, "reply_tokens": 2,
                       "eval_every": 100, "save_every": 3, "seed": 1} | options)  # fmt: skip
    return Trainer(Passes(memory, ChatFormat.of(tokenizer)), recipe, directory, people, team=Team(cpu=True))


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


def test_a_run_that_is_stopped_ends_with_a_checkpoint_of_its_last_step(tmp_path: Path, tokenizer: Any) -> None:
    whole = [r.loss for r in make_trainer(tmp_path / "whole", tokenizer, few_people()).run()]
    stopped = make_trainer(tmp_path / "stopped", tokenizer, few_people())
    losses = []
    for report in stopped.run():
        losses.append(report.loss)
        if report.step == 4:
            stopped.stop()
    assert len(losses) == 4 and stopped.stopped
    again = make_trainer(tmp_path / "stopped", tokenizer, few_people())
    again.resume()
    assert losses + [r.loss for r in again.run()] == pytest.approx(whole, abs=1e-5)
    assert not again.stopped


def test_a_run_that_the_clock_ends_is_saved_and_over(tmp_path: Path, tokenizer: Any) -> None:
    one = make_trainer(tmp_path, tokenizer, few_people(), minutes=1e-6)
    assert [r.step for r in one.run()] == [1] and not one.stopped
    again = make_trainer(tmp_path, tokenizer, few_people(), minutes=1e-6)
    again.resume()
    assert again.step == 1 and not list(again.run())
    longer = make_trainer(tmp_path, tokenizer, few_people(), minutes=10.0)
    longer.resume()
    assert [r.step for r in longer.run()] == [2, 3, 4, 5, 6]


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
    trainer.curriculum = WaitingCurriculum(stages=(Difficulty(pool=2),))
    losses = [r.parts["value"] for r in trainer.run()]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert trainer.passes.memory.state.batch_size == 1
    assert (tmp_path / "delta_mem_adapter.safetensors").is_file()


def test_the_warm_start_lets_questions_find_what_was_told(tokenizer: Any) -> None:
    people = SyntheticPeople(Words())
    people.relations = people.relations[:6]
    memory = make_memory(make_model().requires_grad_(False), state_update_mode="no_lambda", alpha=16.0)
    passes = Passes(memory, ChatFormat.of(tokenizer))
    before = [layer.memory_k_proj.detach().clone() for layer in memory.adapter]  # type: ignore[union-attr, operator]
    fit = fit_memory(memory, passes, people, episodes=48, steps=200)
    # A random backbone says little about what a token is part of; among some hundred classes chance is 1 %.
    assert len(fit.found) == len(fit.overlap) == 3 and min(fit.found) > 0.04
    assert max(fit.overlap) < 0.25, "r = 8 dimensions hold keys with a mean squared cosine of 1/8"
    assert all((b != a.memory_k_proj).any() for b, a in zip(before, memory.adapter, strict=True))
    assert len(fit.explained) == 3 and fit.explained[0] > 0.9, "the first layer sees the embedding itself"
    assert all(layer.delta_o_proj.any() for layer in memory.adapter)  # type: ignore[union-attr, operator]


def test_the_code_of_a_token_comes_back_as_that_token() -> None:
    model = make_model().requires_grad_(False)
    memory = make_memory(model)
    code = TokenCode(memory)
    ids = torch.arange(40)
    numbers = code.of(ids)
    assert numbers.shape == (40, 3, 8)
    spread = code.of(torch.arange(320)).flatten(1)
    torch.testing.assert_close(spread.T @ spread / 320, torch.eye(24), atol=1e-3, rtol=0.0)
    residual = torch.einsum("lhw,nlw->nh", code.directions(), numbers)
    logits = model.lm_head(model.base_model.norm.weight * residual)
    assert (logits.argmax(-1) == ids).float().mean() > 0.8


def gradients(tokenizer: Any, directory: Path, **options: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The parts of one step's loss and its gradient, on a harder batch."""
    people = few_people()
    trainer = make_trainer(directory, tokenizer, people, batch=4, questions=6, **options)
    directory.mkdir(parents=True, exist_ok=True)
    recipe = trainer.recipe
    ordinary = OrdinaryTalk(trainer.passes, people, 2, 0, directory) if recipe.ordinary else None
    hard = Difficulty(facts=3, small_talk=1, earlier=0.5, unknown=0.3, sessions=0.5)
    rng = random.Random(3)
    episodes = [people.episode(rng, hard, "train") for _ in range(4)]
    parts = TrainingStep(trainer.passes, recipe, ordinary, trainer.team).backward(random.Random(4), episodes)
    return parts, {n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None}


EVERYTHING = {
    "ordinary": 3,
    "distill_weight": 0.5,
    "sparsity_weight": 2.0,
    "addressing_weight": 0.7,
    "silence_weight": 0.4,
}


def test_a_step_in_parts_is_the_whole_step(tmp_path: Path, tokenizer: Any) -> None:
    whole, grads = gradients(tokenizer, tmp_path / "a", **EVERYTHING)
    for options in ({"accumulate": 3}, {"bucket": 1}):
        parts, others = gradients(tokenizer, tmp_path / "b", **EVERYTHING, **options)
        assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(others[name], grad, atol=1e-5, rtol=1e-3)


def test_every_part_of_the_objective_has_its_weight(tmp_path: Path, tokenizer: Any) -> None:
    none = {"ordinary": 0, "addressing_weight": 0.0, "start_weight": 0.0, "rest_weight": 0.0}
    bare, grads = gradients(tokenizer, tmp_path, **none)
    assert bare["loss"] == pytest.approx(bare["value"])
    for name, weight in (("distill", 0.5), ("contrast", 0.5), ("sparsity", 3.0), ("addressing", 0.5)):
        parts, others = gradients(tokenizer, tmp_path, **none | {f"{name}_weight": weight})
        assert parts["loss"] == pytest.approx(bare["value"] + weight * parts[name], rel=1e-4)
        assert parts[name] > 0 and any(not torch.allclose(others[n], g) for n, g in grads.items())


def test_silence_shuts_read_gates_in_ordinary_talk_and_touches_nothing_else(tmp_path: Path, tokenizer: Any) -> None:
    others = {"addressing_weight": 0.0, "ordinary": 3}
    bare, without = gradients(tokenizer, tmp_path, **others)
    parts, grads = gradients(tokenizer, tmp_path, **others, silence_weight=0.5)
    assert parts["loss"] == pytest.approx(bare["loss"] + 0.5 * parts["silence"], rel=1e-4)
    for name, grad in grads.items():
        if name.endswith("read_gate_bias"):
            assert (grad > without[name]).all(), "a step against the gradient shuts the gate"
        elif "read_gate" not in name:
            torch.testing.assert_close(grad, without[name])


def test_the_gradient_goes_back_through_so_many_windows(tmp_path: Path, tokenizer: Any) -> None:
    none = {"ordinary": 0, "addressing_weight": 0.0}
    whole, far = gradients(tokenizer, tmp_path, **none, window=60, truncate=99)
    same, near = gradients(tokenizer, tmp_path, **none, window=60, truncate=1)
    assert same == pytest.approx(whole), "truncation changes no loss"
    name = next(n for n in far if n.endswith("memory_k_proj"))
    assert not torch.allclose(far[name], near[name]) and near[name].any()


def test_another_run_of_the_same_seed_is_the_same(tmp_path: Path, tokenizer: Any) -> None:
    one, two = (gradients(tokenizer, tmp_path / n, **EVERYTHING)[0] for n in ("a", "b"))
    assert one == two


# Where it ends, and what it leaves


def test_a_run_stops_when_recall_gets_no_better(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    trainer = make_trainer(tmp_path, tokenizer, few_people(), steps=20, eval_every=2, patience=2)
    monkeypatch.setattr(
        "deltamem.training.trainer.heldout_recall",
        lambda *_: {"1": {"memory": {"asked": 2, "named": next(found), "exact": 0.0}}},
    )
    assert len(list(trainer.run())) == 8 and trainer.best == 0.5
    again = make_trainer(tmp_path, tokenizer, few_people(), steps=20, eval_every=2, patience=2)
    again.resume()
    assert again.step == 8 and list(again.run()) == []


def test_steps_after_the_checkpoint_leave_no_second_line(tmp_path: Path) -> None:
    line = {"loss": 1.5, "accuracy": 0.5, "stage": 0, "rate": 0.1, "seconds": 1.0, "parts": {"value": 1.0}}
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 6):
        metrics.add({"step": step, **line, "recall": {"1": {"named": 0.5}} if step == 4 else {}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    Metrics(tmp_path, 4).add({"step": 5, **line, "recall": {}})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    path = draw_curves(tmp_path)
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")


# What it learns from


def test_sources_are_mixed_by_weight(tmp_path: Path, tokenizer: Any, people: SyntheticPeople) -> None:
    form = ChatFormat.of(tokenizer)
    chats = tmp_path / "chats.jsonl"
    said = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    chats.write_text(json.dumps({"messages": said}) + "\n")
    squad = tmp_path / "squad.json"
    qas = [{"id": str(i), "question": "Who?", "answers": [{"text": "Rex"}] if i else []} for i in range(5)]
    squad.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Rex is a dog.", "qas": qas}]}]}))
    mix = parse_mix(["synthetic:0.5", f"{chats}:0.25", f"{squad}:0.25"], people, form, 4000)
    drawn = [mix.episode(random.Random(i), Difficulty()) for i in range(400)]
    own = sum(e.where == f"{chats}, line 1" for e in drawn)
    passages = [e for e in drawn if "squad.json" in e.where]
    assert 60 < own < 140 and 60 < len(passages) < 140
    assert {len(e.questions) for e in passages} == {1, 4}
    assert any(q.kind == "unknown" and q.answer == people.phrasing.unknown for e in passages for q in e.questions)
    (weight,) = parse_mix([], people, form, None).weights
    assert weight == 1


def test_wrong_data_is_named_before_training(tmp_path: Path, tokenizer: Any, people: SyntheticPeople) -> None:
    form = ChatFormat.of(tokenizer)
    chats = tmp_path / "chats.jsonl"
    said = [{"role": r, "content": c * 50} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    chats.write_text(json.dumps({"messages": said}) + "\n")
    with pytest.raises(DataError, match=r"chats\.jsonl, line 1: a turn of \d+ tokens is longer than the model takes"):
        parse_mix([str(chats)], people, form, 100)
    with pytest.raises(DataError, match=r"weight must be above 0"):
        parse_mix(["synthetic:0"], people, form, None)
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        parse_mix([str(tmp_path / "nowhere.jsonl")], people, form, None)


SCRIPT = """
import random, sys
from pathlib import Path
import torch
from tests.conftest import make_model, make_memory
from tests.test_training import EVERYTHING, few_people, make_trainer
from transformers import AutoTokenizer
torch.set_num_threads(1)
trainer = make_trainer(
    Path(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2]), few_people(), steps=4, batch=4, save_every=4,
    **EVERYTHING,
)
assert trainer.team.size == int(sys.argv[3]), trainer.team.size
list(trainer.run())
"""


def test_two_processes_take_the_steps_of_one(tmp_path: Path, tiny_backbone: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    for size, how in (("1", []), ("2", launch)):
        done = subprocess.run(
            [sys.executable, *how, str(script), str(tmp_path / size), str(tiny_backbone), size],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_metrics(tmp_path / size) for size in ("1", "2"))
    assert [row["step"] for row in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        assert b["parts"] == pytest.approx(a["parts"], rel=1e-3, abs=1e-5)


def test_an_adapter_goes_on_with_a_base_state_that_changes_nothing_at_first(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    plain = make_memory(model, read_gate=True)
    config, tokens = plain.config, ids(1, 9)
    with plain.writing(), torch.no_grad():
        expected = model(input_ids=tokens).logits
    wider = extended(plain, DeltaMemConfig(base_state=True))
    with wider.writing(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, expected)
    assert wider.config == replace(config, base_state=True) and extended(wider, config) is wider
    with torch.no_grad():
        for layer in wider.adapter:
            layer.base_state.normal_()  # type: ignore[union-attr, operator]
    wider.reset()
    with wider.reading(), torch.no_grad():
        assert (model(input_ids=tokens).logits - expected).abs().max() > 1e-3, "an empty state reads something now"


@pytest.mark.parametrize("options", [{}, {"rankwise_gates": False, "read_gate": True, "base_state": True}])
def test_heads_beside_those_an_adapter_has_leave_what_it_says_as_it_was(
    options: dict[str, Any], ids: Callable[..., torch.Tensor]
) -> None:
    model = make_model()
    plain = make_memory(model, couple_lambda=False, **options)
    config, tokens = plain.config, ids(1, 9)
    with plain.writing(), torch.no_grad():
        expected = model(input_ids=tokens).logits
    wider = extended(plain, replace(config, num_state_heads=2))
    assert wider.config == replace(config, num_state_heads=2)
    put_heads_back(wider, plain)
    with wider.writing(), torch.no_grad():
        assert (model(input_ids=tokens).logits - expected).abs().max() > 1e-3, "the new heads write and are read"
    with torch.no_grad():
        for layer in wider.adapter:
            for p in "qkvo":
                getattr(layer, f"delta_{p}_proj")[:, config.rank :] = 0
    wider.reset()
    with wider.writing(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, expected)
    for heads in (3, 1):
        kept = replace(config, num_state_heads=heads)
        if heads == 1:
            assert extended(wider, kept) is wider, "nobody asked for fewer"
        else:
            with pytest.raises(DataError, match="--heads 3"):
                extended(wider, kept)
