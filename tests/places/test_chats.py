"""What is asked in the chat in which it was told, learnt by the second reader."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.training.places import asked_later
from deltamem.training.places.asked_later import AskedLater
from deltamem.training.places.bank import Bank
from deltamem.training.places.builder import Shares, build_bank
from deltamem.training.places.chats import fit_chats
from deltamem.training.places.reading import fit_reading
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.run import extended
from deltamem.training.warm_start import delta_layers
from tests.places.conftest import IDLE


@pytest.fixture
def told_there(passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """A bank half of whose windows hold a chat."""
    hard = Difficulty(facts=3, unknown=1.0, together=0.5)
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", hard)
    people.families, people.singles = [], people.relations
    return build_bank(passes, people, IDLE, 24, seed=1, shares=Shares(chats=0.5))


def test_a_chat_is_learnt_by_the_second_reader_alone(
    passes: Passes, told_there: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = told_there
    start_from(passes.memory, bank)
    passes.memory.adapter.requires_grad_(True)
    fit_reading(passes.memory, bank, 100)
    memory = extended(passes.memory, replace(passes.memory.config, joint_gate=True), readers=2)
    memory.adapter.requires_grad_(True)
    with torch.no_grad():
        for layer in delta_layers(memory):
            layer.second_q_proj.normal_()  # as if it knew nothing
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    losses: list[float] = []
    monkeypatch.setattr(asked_later, "_RATES", dict.fromkeys(asked_later._RATES, 20.0))  # it is slow

    def heard(self: AskedLater, now: Stacked) -> Tensor:
        losses.append(float((found := loss_of(self, now)).detach()))
        return found

    loss_of = AskedLater.loss_of
    monkeypatch.setattr(AskedLater, "loss_of", heard)
    said: list[str] = []
    fit_chats(memory, bank, 120, report=lambda what, _share: said.append(what))
    assert max(losses[-10:]) < min(losses[:10])
    assert set(said) == {"learning to read in a chat", "learning whose reads count"}
    after = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"second_q_proj", "second_read_gate_proj", "route_proj", "route_bias"}

    inside = [place for fact in (*bank.facts, *bank.unknown) if fact.seen for place in fact.asked]
    outside = [place for fact in (*bank.facts, *bank.unknown) if not fact.seen for place in fact.asked]
    now = Stacked(delta_layers(memory))
    with torch.no_grad():
        first, second = now.shares(bank.places.float()).unbind(-1)
    # So small a backbone hardly shows at a token what stands before it.
    assert float(second[inside].mean()) > float(second[outside].mean()) + 0.1
    assert float(first[inside].mean()) < float(first[outside].mean()) - 0.1


def test_a_bank_without_chats_is_refused(passes: Passes, bank: Bank) -> None:
    memory = extended(passes.memory, replace(passes.memory.config, joint_gate=True), readers=2)
    with pytest.raises(DataError, match="in the chat in which it was told"):
        fit_chats(memory, bank, 5)
