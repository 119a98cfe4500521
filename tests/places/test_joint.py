"""The gate that all layers share, trained on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.readers import jointly_open
from deltamem.training.places.builder import build_bank
from deltamem.training.places.joint import fit_joint_gate
from deltamem.training.places.reading import fit_reading
from deltamem.training.places.stacked import Stacked
from deltamem.training.warm_start import delta_layers
from tests.conftest import make_memory, make_model
from tests.places.conftest import OPTIONS

ORDINARY = [
    Question(text, reply, kind="ordinary")
    for text, reply in (("count", "1 2 3 4 5 6"), ("add 3 and 4", "3+4=7"), ("7*8", "7*8=56"))
]


@pytest.fixture
def gated(tokenizer: Any) -> Passes:
    memory = make_memory(make_model().requires_grad_(False), joint_gate=True, **OPTIONS)
    return Passes(memory, ChatFormat.of(tokenizer))


def test_it_opens_where_one_is_asked_about_and_shuts_in_ordinary_talk(gated: Passes, people: SyntheticPeople) -> None:
    memory, bank = gated.memory, build_bank(gated, people, ORDINARY, 12, seed=5)
    layers = delta_layers(memory)
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}

    def opened() -> list[torch.Tensor]:
        with torch.no_grad():
            stacked = Stacked(layers)
            kinds = (bank.places, bank.openings[:, bank.opening_begins], bank.idle)
            return [jointly_open(stacked.joint_logits(hidden.float())) for hidden in kinds]

    assert all((gate == 1).all() for gate in opened())
    said: list[str] = []
    fit_joint_gate(memory, bank, 400, report=lambda what, _share: said.append(what))
    places, openings, idle = opened()
    assert places.mean() > 0.9 and openings.mean() > 0.9 and idle.mean() < 0.4
    after = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"joint_gate_proj", "joint_gate_bias"} and set(said) == {"learning when to read"}

    # Where it is shut nothing is read, whatever the layers' own gates do.
    rows, states = torch.zeros(idle.shape[0], dtype=torch.long), torch.randn(len(layers), 1, 1, 8, 8)
    with torch.no_grad():
        bent = Stacked(layers).bent(bank.idle, bank.idle_residuals, states, rows)
    assert torch.equal(bent[idle == 0], bank.idle_residuals[idle == 0]) and (idle == 0).any()

    # What shuts those in ordinary talk then is the joint gate: they are left to what is found.
    memory.adapter.requires_grad_(True)
    gates = {name: tensor.clone() for name, tensor in after.items() if "joint" in name}
    fit_reading(memory, bank, 20)
    assert all(torch.equal(tensor, memory.adapter.state_dict()[name]) for name, tensor in gates.items())


def test_without_ordinary_talk_there_is_nothing_to_tell_apart(gated: Passes, people: SyntheticPeople) -> None:
    bank = build_bank(gated, people, ORDINARY, 12)
    none = replace(
        bank, idle=bank.idle[:, :0], idle_residuals=bank.idle_residuals[:0], idle_begins=bank.idle_begins[:0]
    )
    with pytest.raises(DataError, match="ordinary talk"):
        fit_joint_gate(gated.memory, none, 5)
