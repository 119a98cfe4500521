"""Steps on places, against the passes they stand in for."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltamem.adapter import NATIVE_FILE
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.impersonal import Impersonal
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.key_pairs import lendable
from deltamem.layer import DeltaLayer, told_of
from deltamem.training.made_up import TALK_FILE
from deltamem.training.ordinary import REPLIES_FILE
from deltamem.training.places.bank import Bank
from deltamem.training.places.builder import build_bank, difficulty
from deltamem.training.places.by_row import ByRow
from deltamem.training.places.draw import Drawing
from deltamem.training.places.lots import Lots
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.step import PlacesStep
from deltamem.training.places.tail import Tail
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team
from deltamem.training.trainer import Trainer
from deltamem.training.warm_start import delta_layers
from tests.conftest import make_memory, make_model, make_tokenizer
from tests.places.conftest import IDLE, OPTIONS
from tests.test_cached_training import Half
from tests.test_training import few_people


def test_a_place_says_what_the_whole_pass_says(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits worked out from the bank are those of running the window through the backbone."""
    monkeypatch.setattr("deltamem.training.places.collector._REST", 1.0)
    monkeypatch.setattr("deltamem.training.places.builder._FAMILIES", 0.0)
    monkeypatch.setattr("deltamem.training.places.builder._SINGLES", 0.0)
    rng = random.Random("places-0-0")
    made = sorted(
        (people.episode(rng, difficulty(rng), "train") for _ in range(4)),
        key=lambda e: e.length,
    )
    bank = build_bank(passes, people, IDLE, 4)
    step = PlacesStep(passes, Recipe(), bank, Team(cpu=True))
    asked = sorted(((i, q) for i, e in enumerate(made) for q in e.questions), key=lambda pair: pair[1].length)
    batch = read_batch(passes.form, asked)
    with torch.no_grad():
        state = passes.write(write_batch(passes.form, made), local_gradient=False)
        expected = passes.read(batch, state)[:, bank.candidates]
        rows = torch.cat([batch.rows[n, None].expand(int(c)) for n, c in enumerate((batch.targets != -100).sum(-1))])
        bent = step._layers.bent(bank.places, bank.residuals, state.tensor, rows)
        found = Tail(passes.memory)(bent, bank.candidates)
    assert torch.equal(bank.targets, batch.expected()[0])
    assert torch.equal(bank.values, batch.values[batch.targets != -100] > 0)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # the bank is in bfloat16


def test_keys_are_altered_by_what_values_of_the_same_differ_in(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Drawing(bank)
    drawn = drawing.histories(random.Random(1), 3, 30, 0.0, 1000)
    of = {t: f for f in bank.facts if not f.noted for t in f.told}
    moved = 0
    for told, other in zip(drawn.told[drawn.valid].tolist(), drawn.other[drawn.valid].tolist(), strict=True):
        if told != other:
            moved += 1
            assert of[told].topic == of[other].topic
    assert moved > 10
    step = PlacesStep(passes, Recipe(), bank, Team(cpu=True))
    hidden = bank.told[:, drawn.told.flatten()].float().unflatten(1, drawn.told.shape)
    far = torch.full(drawn.told.shape, 0.5)
    found = step._altered(hidden, bank.told, drawn, far)
    others = bank.told[:, drawn.other.flatten()].float().unflatten(1, drawn.told.shape)
    torch.testing.assert_close(found, (hidden + others) / 2)
    none = torch.zeros(0, dtype=torch.long)
    monkeypatch.setattr("deltamem.training.places.step._JITTER", 0.0)
    step._noise_sizes = [0.0] * len(step._noise_sizes)
    with torch.no_grad():
        moving, *_ = step._write(drawn, none)
        monkeypatch.setattr("deltamem.training.places.step._ALTERED", 0.0)
        plain, *_ = step._write(drawn, none)
    assert (moving[0] - plain[0]).abs().max() > 1e-3


def test_values_of_others_are_written_with_own_keys_and_gates(passes: Passes) -> None:
    layer = delta_layers(passes.memory)[0]
    x, y = torch.randn(2, 5, layer.hidden_size), torch.randn(2, 5, layer.hidden_size)
    with torch.no_grad():
        mine, theirs = x.flatten(0, 1)[None], y.flatten(0, 1)[None]
        mixed, own = (
            told_of(layer.config, Stacked([layer]).told_products(mine, None, said).view(2, 5, -1))
            for said in (theirs, mine)
        )
        others = layer.told(y)
    assert torch.equal(mixed.k, own.k) and torch.equal(mixed.gates.write, own.gates.write)
    torch.testing.assert_close(mixed.v, others.v)


def gradients(
    passes: Passes, bank: Bank, team: Team, **recipe: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    passes.memory.adapter.requires_grad_(True)
    passes.memory.adapter.zero_grad()
    options = {"cached_questions": 12, "cached_facts": 4, "silence_weight": 0.5} | recipe
    parts = PlacesStep(passes, Recipe(**options), bank, team).backward(3)
    return parts, {n: p.grad.clone() for n, p in passes.memory.adapter.named_parameters() if p.grad is not None}


def test_the_shares_of_two_processes_add_up(passes: Passes, bank: Bank) -> None:
    whole, grads = gradients(passes, bank, Team(cpu=True))
    assert {"value", "start", "rest", "ordinary", "gates", "overlap", "loss", "accuracy"} <= whole.keys()
    halves = [gradients(passes, bank, Half(rank)) for rank in (0, 1)]
    for name, grad in grads.items():
        torch.testing.assert_close(sum(h[1][name] for h in halves), grad, atol=1e-5, rtol=1e-3)
    assert sum(h[0]["value"] for h in halves) == pytest.approx(whole["value"], rel=1e-4)


def test_a_step_tells_what_is_to_be_said_apart_from_some_of_all(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few others among them, what is to be said still is, and its loss is the one among all but for chance."""
    every, _ = gradients(passes, bank, Team(cpu=True))
    monkeypatch.setattr("deltamem.training.places.step._AMONG", 4)
    monkeypatch.setattr("deltamem.training.places.step._LIKELIEST", 2)
    recipe = Recipe(cached_questions=12, cached_facts=4, silence_weight=0.5)
    step = PlacesStep(passes, recipe, bank, Team(cpu=True))
    few = step.backward(3)
    lot = Lots(bank, recipe).draw(3)
    with torch.no_grad():
        likely = Tail(passes.memory)(bank.idle_residuals[lot.idle].float()).topk(2).indices
    wanted = torch.cat([lot.drawn.targets, bank.opening_targets[lot.openings], likely.flatten()])
    among = step._among.ids
    assert set(wanted.tolist()) <= set(among.tolist())
    assert len(among) <= len(wanted.unique()) + 4 < len(bank.candidates)
    assert few["value"] == pytest.approx(every["value"], rel=0.05) and few["accuracy"] >= every["accuracy"]


def test_every_part_of_the_adapter_learns(passes: Passes, bank: Bank) -> None:
    _, grads = gradients(passes, bank, Team(cpu=True))
    parts = {name.partition(".")[2] for name, grad in grads.items() if grad.abs().max() > 0}
    assert parts >= {"memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "delta_o_proj", "base_state",
                     "read_gate_proj"}  # fmt: skip


def test_steps_on_places_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = few_people()
    people.families, people.singles = [], people.relations
    memory = make_memory(make_model().requires_grad_(False), joint_gate=True, **OPTIONS)
    recipe = Recipe(steps=180, cached_steps=180, bank=12, cached_questions=24, cached_facts=2, warmup=2, ordinary=1,
                    reply_tokens=2, eval_every=200, save_every=30, seed=1, learning_rate=1e-2, key_steps=5, say_steps=5,
                    vocabulary=1, made_up=2, impersonal=1, read_steps=3, joint_steps=2)  # fmt: skip
    passes = Passes(memory, ChatFormat.of(make_tokenizer()))
    few = [Impersonal("What is a cat?", "cat"), Impersonal("How do I find a job?", "")]
    monkeypatch.setattr(
        "deltamem.training.places.whole.impersonal", lambda _rng, split, each: few * (split == "train") * each
    )
    # So small a model learns which values there are, and little of any word in their place.
    monkeypatch.setattr("deltamem.training.places.draw._SWAPPED", 0.0)
    said: list[str] = []
    trainer = Trainer(
        passes, recipe, tmp_path, people, team=Team(cpu=True), preparing=lambda what, _: said.append(what)
    )
    losses = [r.parts["value"] for r in trainer.run()]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert list(dict.fromkeys(said))[-5:] == [
        "telling every word there is", "telling keys apart", "learning to say what is read",
        "learning when to read", "learning to read",
    ]  # fmt: skip
    assert {"letting the frozen backbone reply", "letting the backbone talk", "reading what is told and asked"} <= set(
        said
    )
    replies = json.loads((tmp_path / REPLIES_FILE).read_text())
    assert {q.text for q in few} <= replies.keys()
    assert not {q.text for q in few} & {turn.user for turn in people.talk("train")}, "no history holds them"
    said.clear()
    again = Trainer(passes, recipe, tmp_path, people, team=Team(cpu=True), preparing=lambda what, _: said.append(what))
    again.resume()
    assert not list(again.run()) and not said, "a finished run is not finished twice"
    more = replace(recipe, steps=0, cached_steps=0, vocabulary=0, key_steps=0, say_steps=0, joint_steps=0)
    (tmp_path / "more").mkdir()
    for file in (TALK_FILE, REPLIES_FILE):
        shutil.copy(tmp_path / file, tmp_path / "more")
    before = load_file(tmp_path / NATIVE_FILE)
    last = Trainer(
        passes, more, tmp_path / "more", people, team=Team(cpu=True), preparing=lambda what, _: said.append(what)
    )
    assert not list(last.run()), "there are no steps but those"
    assert said[-1] == "learning to read" and not {w for w in said if w.startswith("letting")}, "that was kept"
    after = load_file(tmp_path / "more" / NATIVE_FILE)
    moved = {name.rpartition(".")[2] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved <= {"memory_q_proj", "read_gate_proj", "read_gate_bias", "base_state"} and "base_state" in moved


def alone(
    tmp_path: Path, people: SyntheticPeople, besides: tuple[str, ...] = (), choices: int = 0, **recipe: int
) -> tuple[Trainer, list[str], set[str]]:
    """A run of steps on their own, what it said that it does, and which weights it changed; `besides` are options that
    its adapter has as well, and `choices` how many it has of a table.
    """
    people.families, people.singles = [], people.relations
    options = OPTIONS | dict.fromkeys(besides, True) | ({"choices": choices, "choice_rank": choices} if choices else {})
    memory = make_memory(make_model().requires_grad_(False), **options)
    before = {name: tensor.clone() for name, tensor in memory.adapter_tensors().items()}
    passes, said = Passes(memory, ChatFormat.of(make_tokenizer())), []
    chosen = Recipe(steps=0, cached_steps=0, bank=8, ordinary=1, reply_tokens=2, **recipe)
    trainer = Trainer(
        passes, chosen, tmp_path, people, team=Team(cpu=True), preparing=lambda what, _: said.append(what)
    )
    assert not list(trainer.run())
    saved = load_file(tmp_path / NATIVE_FILE)
    return trainer, said, {n.rpartition(".")[2] for n, tensor in saved.items() if not torch.equal(tensor, before[n])}


def test_gates_can_be_all_that_is_trained(tmp_path: Path) -> None:
    trainer, said, moved = alone(tmp_path, few_people(), gate_steps=10)
    assert said[-1] == "opening gates on values"
    assert {"beta_proj", "read_gate_proj"} <= moved <= {"beta_proj", "beta_bias", "read_gate_proj", "read_gate_bias"}
    said.clear()
    again = Trainer(
        trainer.passes, trainer.recipe, tmp_path, trainer.people, team=Team(cpu=True),
        preparing=lambda what, _: said.append(what),
    )  # fmt: skip
    again.resume()
    assert not list(again.run()) and not said


def test_numbers_can_be_all_that_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = few_people()
    numeric = {relation.id for relation in people.relations[::2]}
    for module in ("numbers", "builder"):
        monkeypatch.setattr(f"deltamem.training.places.{module}.is_number", numeric.__contains__)
    about = ["What is 2 plus 3?", "What is a usual age?"]
    monkeypatch.setattr(
        "deltamem.training.places.whole.about_numbers", lambda _rng, split, _n: about * (split == "train")
    )
    trainer, said, moved = alone(tmp_path, people, number_steps=5)
    assert said[-1] == "learning numbers" and {"letting the backbone write", "reading ordinary text"} <= set(said)
    assert set(about) <= json.loads((tmp_path / REPLIES_FILE).read_text()).keys()
    assert set(about) <= {turn.user for turn in trainer.people.small_talk}, "histories tell them as well"
    assert moved == {"memory_k_proj", "memory_v_proj", "beta_proj", "memory_q_proj", "read_gate_proj"}


def test_how_replies_begin_can_be_all_that_is_learnt(tmp_path: Path) -> None:
    _, said, moved = alone(tmp_path, few_people(), ("joint_gate", "plain_read"), begin_steps=5)
    assert said[-1] == "reading where memory is heard" and {"learning how replies begin"} < set(said)
    gates = {"joint_gate_proj", "joint_gate_bias"}
    assert moved == {"plain_read_proj", *gates}
    people, both = few_people(), ("joint_gate", "plain_read")
    _, said, moved = alone(tmp_path / "chosen", people, both, choices=4, begin_steps=5)
    assert said.index("learning how replies begin") < said.index("learning to choose how replies begin")
    assert moved == {"plain_read_proj", "choice_proj", "choice_keys", "choice_bias", "choice_values", *gates}


def test_what_is_erased_can_be_all_that_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = few_people()
    monkeypatch.setattr("deltamem.training.places.builder.openings", lambda *_: pytest.fail("no reply is looked at"))
    people.families, people.singles = [], people.relations
    memory = make_memory(make_model().requires_grad_(False), learned_erase=True, **OPTIONS)
    before = {name: tensor.clone() for name, tensor in memory.adapter_tensors().items()}
    recipe = Recipe(steps=0, cached_steps=0, bank=16, ordinary=1, reply_tokens=2, fit_erase=True)
    passes, said = Passes(memory, ChatFormat.of(make_tokenizer())), []
    trainer = Trainer(
        passes, recipe, tmp_path, people, team=Team(cpu=True), preparing=lambda what, _: said.append(what)
    )
    assert not list(trainer.run()) and not {what for what in said if what.startswith("letting")}
    saved = load_file(tmp_path / NATIVE_FILE)
    moved = {name.rpartition(".")[2] for name, tensor in saved.items() if not torch.equal(tensor, before[name])}
    assert moved == {"erase_proj", "erase_bias"}


def test_what_writes_stays_where_that_is_asked_for(tmp_path: Path) -> None:
    people = few_people()
    people.families, people.singles = [], people.relations
    memory = make_memory(make_model().requires_grad_(False), **OPTIONS)
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    recipe = Recipe(steps=6, cached_steps=6, bank=8, cached_questions=24, cached_facts=2, warmup=2, ordinary=1,
                    reply_tokens=2, eval_every=200, save_every=3, learning_rate=1e-2, keep_writing=True)  # fmt: skip
    passes = Passes(memory, ChatFormat.of(make_tokenizer()))
    first = Trainer(passes, recipe, tmp_path, people, team=Team(cpu=True))
    for report in first.run():
        if report.step == 3:
            first.stop()
    halfway = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    again = Trainer(passes, recipe, tmp_path, people, team=Team(cpu=True))
    again.resume()
    assert [report.step for report in again.run()] == [4, 5, 6]
    for found in (halfway, memory.adapter.state_dict()):
        moved = {name.rpartition(".")[2] for name, tensor in found.items() if not torch.equal(tensor, before[name])}
        assert moved == {
            "memory_q_proj", "delta_o_proj", "base_state", "read_gate_proj", "read_gate_bias",
        }  # fmt: skip


def test_places_are_laid_out_by_row_and_back() -> None:
    rows = torch.tensor([2, 0, 2, 4, 0, 2])
    by_row = ByRow(rows, 6)
    x = torch.arange(12.0).view(6, 2)
    laid = by_row.padded(x)
    assert laid.shape == (6, 3, 2) and torch.equal(by_row.flat(laid), x)
    for row in range(6):
        assert torch.equal(laid[row, : int((rows == row).sum())], x[rows == row])
    assert not laid[1].any() and not laid[4, 1:].any()


def lends(layer: DeltaLayer, before: torch.Tensor) -> torch.Tensor:
    """What the tokens before lend, by the layer's own weights."""
    gates = before @ layer.beta_proj.T + layer.beta_bias
    return lendable(layer.config, before @ layer.memory_k_proj.T, gates)


def test_layers_side_by_side_are_the_layers(passes: Passes) -> None:
    layers = delta_layers(passes.memory)
    config = passes.memory.config
    with torch.no_grad():
        for layer in layers:
            layer.delta_o_proj.normal_()
            layer.base_state.normal_()
    x, before, said = torch.randn(3, len(layers), 7, layers[0].hidden_size)
    states = torch.randn(len(layers), 2, config.num_state_heads, config.rank, config.rank)
    rows = torch.tensor([0, 1, 1, 0, 1, 1, 1])
    stacked = Stacked(layers)
    with torch.no_grad():
        told = stacked.told_products(x, before, said)
        reads = stacked.reads(x, states, ByRow(rows, 2))
        gates = stacked.write_gates(x), stacked.read_gates(x)
        found = stacked.corrections(reads)
        expected = torch.zeros_like(found)
        for i, layer in enumerate(layers):
            width = len(layer.memory_k_proj)
            products = layer.lend_to(layer.told_products(x[i]), lambda _, i=i, layer=layer: lends(layer, before[i]))
            products[:, width : 2 * width] = said[i] @ layer.memory_v_proj.T
            torch.testing.assert_close(told[i], products)
            own = torch.cat([layer.read(x[i, None, None, n], states[i, None, row])[0] for n, row in enumerate(rows)])
            torch.testing.assert_close(reads[:, i].flatten(1), own, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(gates[0][i], layer.write_gates(x[i]).flatten(1))
            torch.testing.assert_close(gates[1][i], layer.read_gates(x[i]))
            expected += layer.correction("o", own)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
