"""How memory is read, trained on its own."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places import reading
from deltamem.training.places.bank import Bank, with_words
from deltamem.training.places.builder import build_bank
from deltamem.training.places.draw import Drawing
from deltamem.training.places.reading import Asking, fit_reading
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.states import states_of
from deltamem.training.places.tail import Tail
from deltamem.training.places.vocabulary import tell_vocabulary
from deltamem.training.run import extended
from deltamem.training.warm_start import delta_layers
from tests.places.conftest import IDLE


def test_reading_is_learnt_without_touching_what_is_written(passes: Passes, people: SyntheticPeople) -> None:
    people.families, people.singles = [], people.relations
    memory = passes.memory
    bank = with_words(build_bank(passes, people, IDLE, 12), tell_vocabulary(passes, people, 1))
    start_from(memory, bank)
    memory.adapter.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    asking, said = Asking(memory, bank), []

    def loss() -> float:
        return sum(float(asking.loss().detach()) for _ in range(5))

    at_first = loss()
    fit_reading(memory, bank, 60, report=lambda what, _share: said.append(what))
    assert loss() < 0.7 * at_first
    after = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"memory_q_proj", "read_gate_proj", "read_gate_bias", "base_state"}
    assert set(said) == {"learning to read"}


def test_both_readers_learn_to_read(passes: Passes, bank: Bank) -> None:
    start_from(passes.memory, bank)
    memory = extended(passes.memory, replace(passes.memory.config, joint_gate=True), readers=2)
    memory.adapter.requires_grad_(True)
    with torch.no_grad():
        for layer in delta_layers(memory):
            layer.route_bias.zero_()  # each counts half
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    fit_reading(memory, bank, 3)
    after = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    own = {"memory_q_proj", "read_gate_proj", "read_gate_bias", "base_state"}
    assert moved == own | {"second_q_proj", "second_read_gate_proj"}


def test_learning_to_read_leaves_ordinary_talk_alone(passes: Passes, bank: Bank) -> None:
    memory, layers = passes.memory, delta_layers(passes.memory)
    memory.adapter.requires_grad_(True)
    with torch.no_grad():
        for layer in layers:
            for weight in (layer.delta_o_proj, layer.base_state):
                weight.normal_()

    def opened(hidden: torch.Tensor) -> float:
        return float(Stacked(layers).read_gates(hidden.float()).detach().mean())

    before = opened(bank.idle)
    fit_reading(memory, bank, 150)
    assert opened(bank.idle) < before / 2 and opened(bank.openings) > 1.5 * opened(bank.idle)


def test_replies_to_statements_are_learnt_with_what_was_just_told_in_the_state(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", Difficulty(facts=2, noted=1.0, together=0.5))
    bank = build_bank(passes, people, IDLE, 30)
    start_from(passes.memory, bank)
    passes.memory.adapter.requires_grad_(True)
    there = {name: tensor.clone() for name, tensor in passes.memory.adapter.state_dict().items()}

    def left(weight: float) -> float:
        """Loss where sentences of replies begin and end, after steps in which statements have this weight."""
        monkeypatch.setattr(reading, "_STATED", weight)
        for other in ("_BEGUN", "_SAID", "_KEPT", "_QUIET", "_ALONE"):
            monkeypatch.setattr(reading, other, 0.01)
        passes.memory.adapter.load_state_dict(there)
        fit_reading(passes.memory, bank, 150)
        drawn = Drawing(bank).statements(random.Random(1), 0, 60)
        now, tail = Stacked(delta_layers(passes.memory)), Tail(passes.memory)
        at, rows = drawn.places[~bank.values[drawn.places]], drawn.rows[~bank.values[drawn.places]]
        with torch.no_grad():
            states = states_of(now, bank, drawn)
            logits = tail(now.bent(bank.places[:, at], bank.residuals[at], states, rows))
        return float(F.cross_entropy(logits, bank.targets[at]))

    assert left(3.0) < 0.97 * left(0.0), "so small a backbone learns little of it"
