"""Write and read gates, trained on their own."""

from __future__ import annotations

import pytest
import torch

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places.bank import Bank
from deltamem.training.places.builder import build_bank
from deltamem.training.places.gates import fit_gates
from deltamem.training.places.stacked import Stacked
from deltamem.training.warm_start import delta_layers
from tests.places.conftest import IDLE


def test_gates_open_on_what_goes_on_a_value_and_stay_elsewhere(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", Difficulty(facts=2, long_values=1.0))
    memory = passes.memory
    bank = build_bank(passes, people, IDLE, 12)
    memory.adapter.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    later = sorted({t for f in bank.facts for b, t in zip(f.told, f.told[1:], strict=False) if t == b + 1})
    asked_on = [p for f in bank.facts for p in bank.after_value(f) if bank.values[p]]
    joining = {int(bank.told_ids[later[0]])}
    held = [t for t in later if int(bank.told_ids[t]) in joining]
    later = [t for t in later if t not in held and t - 1 not in held]

    def gates() -> dict[str, torch.Tensor]:
        stacked = Stacked(delta_layers(memory))
        with torch.no_grad():
            return {
                "later": stacked.write_gates(bank.told[:, later].float()),
                "joining": stacked.write_gates(bank.told[:, held].float()),
                "other": stacked.write_gates(bank.other.float()),
                "asked on": stacked.read_gates(bank.places[:, asked_on].float()),
                "idle": stacked.read_gates(bank.idle.float()),
            }

    was, said = gates(), []
    fit_gates(memory, bank, joining, 400, report=lambda what, _share: said.append(what))
    now = gates()
    moved = {name: float((now[name] - was[name]).abs().mean()) for name in was}
    assert set(said) == {"opening gates on values"}
    for opened, least in (("later", 0.85), ("asked on", 0.97)):
        short = [(least - found[opened]).clamp_min(0).mean() for found in (was, now)]
        assert short[0] > 0.01 and short[1] < 0.6 * short[0], opened
    assert moved["joining"] < 0.05 and moved["other"] < 0.5 * moved["later"] and moved["idle"] < 0.5 * moved["asked on"]
    changed = {name for name, tensor in memory.adapter.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {
        "beta_proj", "beta_bias", "read_gate_proj", "read_gate_bias",
    }  # fmt: skip


def test_gates_open_on_all_of_a_number(
    passes: Passes, people: SyntheticPeople, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = passes.memory
    memory.adapter.requires_grad_(True)
    numeric = {fact.topic.relation for fact in bank.facts[::2]}
    monkeypatch.setattr("deltamem.training.places.gates.is_number", numeric.__contains__)
    digits = [t for fact in bank.facts if fact.topic.relation in numeric for t in fact.told]
    asked = [p for f in bank.facts if f.topic.relation in numeric for p in f.asked if bank.values[p]]

    def least() -> tuple[float, float]:
        stacked = Stacked(delta_layers(memory))
        with torch.no_grad():
            found = stacked.write_gates(bank.told[:, digits].float()), stacked.read_gates(bank.places[:, asked].float())
        return float((0.85 - found[0]).clamp_min(0).mean()), float((0.97 - found[1]).clamp_min(0).mean())

    was = least()
    fit_gates(memory, bank, (), 300)
    now = least()
    assert was[0] > 0.3 and now[0] < 0.6 * was[0] and now[1] <= was[1]
