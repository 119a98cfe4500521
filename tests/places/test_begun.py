"""In what words replies begin, learnt as a plain product of all that layers see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank
from deltamem.training.places.begun import fit_beginnings
from deltamem.training.places.builder import build_bank
from deltamem.training.places.joint import fit_joint_gate
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.tail import Tail
from deltamem.training.run import extended
from deltamem.training.warm_start import delta_layers
from tests.places.conftest import IDLE


@pytest.fixture
def memory(passes: Passes, bank: Bank) -> DeltaMemory:
    start_from(passes.memory, bank)
    joint = replace(passes.memory.config, joint_gate=True)
    memory = extended(passes.memory, joint, readers=3, plainly=True)
    fit_joint_gate(memory, bank, 200)
    return memory


def said(memory: DeltaMemory, bank: Bank, hidden: torch.Tensor, residuals: torch.Tensor) -> torch.Tensor:
    """Logits among candidates with nothing told."""
    layers = Stacked(delta_layers(memory))
    heads, rank = memory.config.num_state_heads, memory.config.rank
    states, rows = torch.zeros(len(hidden), 1, heads, rank, rank), torch.zeros(len(residuals), dtype=torch.long)
    with torch.no_grad():
        return Tail(memory)(layers.bent(hidden, residuals, states, rows), bank.candidates).float()


def moved_by(now: torch.Tensor, was: torch.Tensor) -> float:
    """How far what is said has moved, mean KL of log-probabilities (n, tokens)."""
    return float((was.exp() * (was - now)).sum(-1).mean())


def test_beginnings_are_learnt_and_nothing_else_moves(memory: DeltaMemory, bank: Bank) -> None:
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    wanted = torch.searchsorted(bank.candidates, bank.opening_targets)

    def seen() -> tuple[float, torch.Tensor, torch.Tensor]:
        """The loss where replies begin, and what is said of what was told and in ordinary talk."""
        begun = F.cross_entropy(said(memory, bank, bank.openings, bank.opening_residuals), wanted)
        told, idle = ((bank.places, bank.residuals), (bank.idle, bank.idle_residuals))
        return float(begun), *(said(memory, bank, *of).log_softmax(-1) for of in (told, idle))

    begun, *others = seen()
    heard: list[str] = []
    fit_beginnings(memory, bank, 120, report=lambda what, _share: heard.append(what))
    after, *still = seen()
    # So small a backbone knows little of what it is asked.
    assert after < begun - 0.3, (begun, after)
    assert all(moved_by(now, was) < 0.3 * (begun - after) for now, was in zip(still, others, strict=True))
    now = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in now if not torch.equal(now[name], before[name])}
    assert moved == {"plain_read_proj"}
    assert set(heard) == {"reading where replies begin", "learning how replies begin"}


def test_it_goes_on_from_what_was_learnt_and_is_kept(memory: DeltaMemory, bank: Bank, tmp_path: Path) -> None:
    fit_beginnings(memory, bank, 30)
    first = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    fit_beginnings(memory, bank, 1)  # of a warm-up
    for name, tensor in memory.adapter.state_dict().items():
        torch.testing.assert_close(tensor, first[name], atol=2e-2, rtol=0)
    memory.save_pretrained(tmp_path)
    memory.detach()
    again = DeltaMemory.from_pretrained(memory.model, tmp_path)
    assert again.config.plain_read
    for name, tensor in again.adapter.state_dict().items():
        torch.testing.assert_close(tensor, memory.adapter.state_dict()[name])


def test_without_openings_there_is_nothing_to_learn(
    memory: DeltaMemory, passes: Passes, people: SyntheticPeople
) -> None:
    bank = build_bank(Passes(memory, passes.form), people, IDLE, 12, begun=0.0)
    with pytest.raises(DataError, match="openings"):
        fit_beginnings(memory, bank, 5)
