"""In what words replies begin, learnt as a choice among all ways that they go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deltamem.choices import shares_of_entries
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank
from deltamem.training.places.begun import fit_beginnings
from deltamem.training.places.choosing import Choosing, fit_choices, ways_of
from deltamem.training.places.stacked import Stacked
from deltamem.training.warm_start import delta_layers
from tests.places.test_begun import memory, moved_by, said

__all__ = ["memory"]  # pytest finds the fixture by its name


def chosen_at(memory: DeltaMemory, hidden: torch.Tensor) -> torch.Tensor:
    """How far each entry is chosen, (n, entries)."""
    layers = delta_layers(memory)
    keys, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("choice_keys", "choice_bias"))
    with torch.no_grad():
        return shares_of_entries(Stacked(layers).asked(hidden.float()), keys, bias)


def test_ways_are_what_replies_say_until_the_sentence_ends(bank: Bank) -> None:
    told = torch.tensor([1, 2, 3, 9, 9, 9, 4, 2, 3, 4, 2, 3, 7, 7])
    starts = torch.zeros(14, dtype=torch.bool)
    starts[[0, 3, 6, 9, 12]] = True
    alone = torch.ones(14, dtype=torch.bool)
    alone[12:] = False
    few = replace(bank, opening_targets=told, opening_starts=starts, opening_alone=alone)
    which, counts = ways_of(few, 8)
    # (2, 3) and (3) thrice; all others are too rare, and those of no single relation count for none.
    assert counts.tolist() == [3, 3]
    assert sorted({*which[[1, 7, 10]].tolist(), *which[[2, 8, 11]].tolist()}) == [0, 1]
    assert which[1] == which[7] == which[10] and which[2] == which[8] == which[11]
    assert (which[[0, 3, 4, 5, 6, 9, 12, 13]] == 2).all()
    assert len(ways_of(few, 1).counts) == 1
    with pytest.raises(DataError, match="openings"):
        ways_of(replace(few, opening_alone=torch.zeros_like(alone)), 8)


def test_how_replies_go_on_is_chosen_and_nothing_else_moves(memory: DeltaMemory, bank: Bank) -> None:
    fit_beginnings(memory, bank, 40)
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}
    others = (bank.places, bank.residuals), (bank.idle, bank.idle_residuals)
    was = [said(memory, bank, *of).log_softmax(-1) for of in others]
    wanted = torch.searchsorted(bank.candidates, bank.opening_targets)
    ways = ways_of(bank, 2 * memory.config.choices)
    known = ways.which < len(ways.counts)
    assert known.any() and not known.all()

    def right() -> float:
        begun = said(memory, bank, bank.openings[:, known], bank.opening_residuals[known])
        return float((begun.argmax(-1) == wanted[known]).float().mean())

    def right_without_the_product() -> float:
        """So small a backbone has no product that knows less than what is chosen."""
        kept = [layer.plain_read_proj.detach().clone() for layer in delta_layers(memory)]
        for layer in delta_layers(memory):
            layer.plain_read_proj.data.zero_()
        found = right()
        for layer, own in zip(delta_layers(memory), kept, strict=True):
            layer.plain_read_proj.data.copy_(own)
        return found

    before_that, alone = right(), right_without_the_product()
    heard: list[str] = []
    fit_choices(memory, bank, 120, report=lambda what, _share: heard.append(what))
    each = chosen_at(memory, bank.openings)
    # Of 42 ways, by 96 numbers of a backbone that was never trained.
    assert (each[known].argmax(-1) == ways.which[known]).float().mean() > 0.4
    # A value is none of the ways that replies go on.
    assert chosen_at(memory, bank.places[:, bank.values]).sum(-1).median() < 0.2
    assert right() > before_that
    assert right_without_the_product() > alone + 0.2, (right_without_the_product(), alone)
    for of, then in zip(others, was, strict=True):
        assert moved_by(said(memory, bank, *of).log_softmax(-1), then) < 0.1
    now = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in now if not torch.equal(now[name], before[name])}
    assert moved == {"choice_proj", "choice_keys", "choice_bias", "choice_values"}
    assert {"reading how replies go on", "learning to choose how replies begin"} <= set(heard)


def test_entries_that_stand_for_nothing_are_never_chosen(memory: DeltaMemory, bank: Bank) -> None:
    ways = ways_of(bank, 5)
    keys, bias = Choosing(memory, bank).begin(ways)
    for layer, own, its in zip(delta_layers(memory), keys, bias, strict=True):
        layer.choice_keys.data.copy_(own)
        layer.choice_bias.data.copy_(its)
    each = chosen_at(memory, torch.cat([bank.openings, bank.places, bank.idle], dim=1))
    assert each[:, 5:].max() < 1e-6 and each[:, :5].max() > 0.5
