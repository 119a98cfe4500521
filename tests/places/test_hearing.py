"""Where replies are about what was told, by regression."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places import hearing
from deltamem.training.places.bank import Bank
from deltamem.training.places.hearing import fit_hearing
from deltamem.training.warm_start import delta_layers
from tests.places.test_begun import memory

__all__ = ["memory"]  # pytest finds the fixture by its name


def gates(memory: DeltaMemory, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of the joint gates of all three readers, (n, 3)."""
    with torch.no_grad():
        parts = [layer.joint_logits(x) for layer, x in zip(delta_layers(memory), hidden.float(), strict=True)]
    return torch.stack(parts).sum(0)[:, [0, 1, 3]]


def test_gates_open_where_replies_are_about_what_was_told(memory: DeltaMemory, bank: Bank) -> None:
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    about, other = torch.cat([bank.openings, bank.places], dim=1), bank.idle
    was = gates(memory, about)
    heard: list[str] = []
    fit_hearing(memory, bank, report=lambda what, _share: heard.append(what))
    assert (gates(memory, about) > 0).float().mean() > 0.9 and (gates(memory, other) < 0).float().mean() > 0.9
    now = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in now if not torch.equal(now[name], before[name])}
    names = ("joint_gate_proj", "second_joint_gate_proj", "third_joint_gate_proj", "joint_gate_bias")
    assert moved == set(names) and set(heard) == {"reading where memory is heard"}
    # What is found is the same for all readers.
    found = gates(memory, about) - 0.3 * was
    torch.testing.assert_close(found[:, 1:], found[:, :1].expand(-1, 2), atol=1e-3, rtol=1e-3)


def test_it_is_ridge_regression(memory: DeltaMemory, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the normal equations in float64, with the first tokens of ordinary replies counting for more."""
    monkeypatch.setattr(hearing, "_LEARNT", 0.0)
    monkeypatch.setattr(hearing, "_FOUND", 1.0)
    monkeypatch.setattr(hearing, "_FROM", 0.0)
    every = torch.cat([bank.openings, bank.places, bank.idle], dim=1).double()
    some = torch.randint(every.shape[1], (4096,), generator=torch.Generator().manual_seed(0))
    x = (every / every[:, some].std(1, keepdim=True).clamp_min(1e-3)).transpose(0, 1).flatten(1)
    ordinary = bank.idle.shape[1]
    y = torch.cat([torch.ones(len(x) - ordinary), -torch.ones(ordinary)]).double()
    weight = F.pad(torch.where(bank.idle_begins, 5.0, 1.0), (len(x) - ordinary, 0), value=1.0).double()
    weight[-ordinary:] *= (len(x) - ordinary) / weight[-ordinary:].sum()
    mean, usual = (weight @ x) / weight.sum(), (weight @ y) / weight.sum()
    square = (x - mean).T @ (weight[:, None] * (x - mean))
    square += 1e-2 * square.diagonal().mean() * torch.eye(len(square))
    expected = (x - mean) @ torch.linalg.solve(square, (x - mean).T @ (weight * (y - usual))) + usual
    fit_hearing(memory, bank)
    torch.testing.assert_close(gates(memory, every)[:, 0].double(), expected, atol=2e-2, rtol=2e-2)


def test_without_ordinary_talk_there_is_nothing_to_tell_it_from(memory: DeltaMemory, bank: Bank) -> None:
    none = torch.zeros(0, dtype=torch.bool)
    with pytest.raises(DataError, match="ordinary talk"):
        fit_hearing(memory, replace(bank, idle=bank.idle[:, :0], idle_begins=none))
