"""What people close to one do and are, learnt by a third reader."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.passes import Passes
from deltamem.episodes.relation_data import is_of_relatives
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.layer import told_of
from deltamem.memory import DeltaMemory
from deltamem.readers import THIRD
from deltamem.training.places import asked_later
from deltamem.training.places.asked_later import AskedLater
from deltamem.training.places.bank import Bank, Fact
from deltamem.training.places.builder import Shares, build_bank
from deltamem.training.places.draw import Drawing
from deltamem.training.places.later import alone
from deltamem.training.places.people import fit_people
from deltamem.training.places.reading import fit_reading
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.whose import Whose
from deltamem.training.run import extended
from deltamem.training.warm_start import delta_layers
from tests.places.conftest import IDLE
from tests.test_training import Words


@pytest.fixture
def of_people(passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch) -> Bank:
    hard = Difficulty(facts=4, unknown=0.3, together=0.5)
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", hard)
    every = SyntheticPeople(Words()).relatives
    people.relatives = [relation for relation in every if relation.way in ("home", "job")][:26]
    people.families, people.singles = [], people.relations
    return build_bank(passes, people, IDLE, 60, seed=1, shares=Shares(relatives=0.8, chats=0.2))


@pytest.fixture
def memory(passes: Passes, of_people: Bank) -> DeltaMemory:
    start_from(passes.memory, of_people)
    passes.memory.adapter.requires_grad_(True)
    fit_reading(passes.memory, of_people, 60)
    memory = extended(passes.memory, replace(passes.memory.config, joint_gate=True), readers=3)
    memory.adapter.requires_grad_(True)
    return memory


def about_people(facts: list[Fact]) -> list[Fact]:
    return [fact for fact in facts if is_of_relatives(fact.topic.relation)]


def test_a_bank_tells_of_them_and_says_how_replies_about_them_begin(
    passes: Passes, people: SyntheticPeople, of_people: Bank
) -> None:
    plain = build_bank(passes, people, IDLE, 12)
    assert not plain.opening_relatives.any() and not about_people([*plain.facts, *plain.unknown])
    assert about_people(of_people.facts)
    assert of_people.opening_relatives.any() and not of_people.opening_relatives.all()


def test_keys_learn_whose_a_thing_is_and_others_stay(memory: DeltaMemory, of_people: Bank) -> None:
    bank, layers = of_people, alone(delta_layers(memory), THIRD)
    drawing = Drawing(bank)
    topics = [topic for sort in drawing.sorts for topic in sort if is_of_relatives(topic.relation)]
    told, asked = drawing.one_each(random.Random(0), topics)
    before = bank.before[:, told].float() if bank.before.shape[1] else None
    others = sorted({t for fact in bank.facts if fact not in about_people(bank.facts) for t in fact.told})
    beside = bank.before[:, others].float() if bank.before.shape[1] else None

    def keys(of: list[int] | torch.Tensor, lent: torch.Tensor | None) -> torch.Tensor:
        now, hidden = Stacked(layers), bank.told[:, of].float()
        return told_of(now.config, now.told_products(hidden, lent, hidden)).k

    def found() -> tuple[float, torch.Tensor]:
        """How often a place's own key is the nearest, and keys of all else."""
        with torch.no_grad():
            queries = F.normalize(Stacked(layers).queries(bank.places[:, asked].float()), dim=-1)
            match = torch.einsum("lihr,ljhr->ij", queries, keys(told, before))
            return float((match.argmax(1) == torch.arange(len(match))).float().mean()), keys(others, beside)

    (was, stayed), said = found(), []
    Whose(memory, bank, layers).learn(160, lambda what, _share: said.append(what))
    now, after = found()
    assert now > was + 0.2, (was, now)
    assert float((stayed * after).sum(-1).mean()) > 0.9
    assert set(said) == {"learning whose a thing is"}


def test_a_third_reader_learns_it_and_the_others_stay(
    memory: DeltaMemory, of_people: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = of_people
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    monkeypatch.setattr(asked_later, "_RATES", dict.fromkeys(asked_later._RATES, 10.0))  # so small a backbone is slow
    monkeypatch.setattr("deltamem.training.places.people._LEAN", 0.0)  # and hardly tells places apart
    losses: list[float] = []
    loss_of = AskedLater.loss_of

    def heard(self: AskedLater, now: Stacked) -> torch.Tensor:
        losses.append(float((found := loss_of(self, now)).detach()))
        return found

    monkeypatch.setattr(AskedLater, "loss_of", heard)
    said: list[str] = []
    fit_people(memory, bank, 200, report=lambda what, _share: said.append(what))
    assert sum(losses[-20:]) < sum(losses[:20]) - 5, losses
    assert set(said) == {
        "learning whose a thing is",
        "learning to read of people",
        "learning where it is heard",
        "learning whose reads count",
    }
    after = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    route = {"third_route_proj", "third_route_bias"}
    assert moved == {"memory_k_proj", "third_q_proj", "third_read_gate_proj", "third_joint_gate_proj"} | route

    close = about_people([*bank.facts, *bank.unknown])
    inside = [place for fact in close for place in fact.asked]
    outside = [place for fact in (*bank.facts, *bank.unknown) if fact not in close for place in fact.asked]
    with torch.no_grad():
        shares = Stacked(delta_layers(memory)).shares(bank.places.float())
    assert shares.shape[1] == 3
    assert float(shares[inside, 2].mean()) > float(shares[outside, 2].mean()) + 0.1
    assert float(shares[inside, :2].sum(1).mean()) < float(shares[outside, :2].sum(1).mean()) - 0.1


def test_a_bank_that_tells_nothing_of_them_is_refused(passes: Passes, bank: Bank) -> None:
    memory = extended(passes.memory, replace(passes.memory.config, joint_gate=True), readers=3)
    with pytest.raises(DataError, match="people close to one"):
        fit_people(memory, bank, 5)
