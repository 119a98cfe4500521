"""Numbers, learnt after all else, and what that leaves as it was."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deltamem.episodes.passes import Passes
from deltamem.errors import DataError
from deltamem.readers import SECOND
from deltamem.training.places import numbers
from deltamem.training.places.bank import Bank, Fact
from deltamem.training.places.draw import Drawing, Token
from deltamem.training.places.numbers import fit_numbers
from deltamem.training.places.sparing import Known, Sparing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.states import states_of
from deltamem.training.places.tail import Tail
from deltamem.training.run import extended
from deltamem.training.warm_start import delta_layers
from tests.conftest import make_memory, make_model
from tests.places.conftest import OPTIONS
from tests.places.test_nearness import OTHERS, of_each

WRITTEN_ANEW = {"memory_k_proj", "memory_v_proj", "beta_proj", "memory_q_proj", "read_gate_proj"}


def test_what_is_known_hardly_moves(passes: Passes, bank: Bank) -> None:
    layers = delta_layers(passes.memory)
    generator = torch.Generator().manual_seed(0)
    count, _, size = bank.told.shape
    # What is known varies in all directions but the last eight, and what is new in those as well.
    known, new = (torch.randn(count, 200, size, generator=generator) for _ in range(2))
    known[..., -8:] *= 0.01
    sparing = Sparing(layers, {"memory_k_proj": Known.of(known)})
    was = Stacked(layers)._all("memory_k_proj").detach().clone()
    assert torch.equal(sparing.changed()["memory_k_proj"], was) and sparing.moved() == 0

    loss = (new @ (sparing.changed()["memory_k_proj"] - was).mT - 1).square().mean()
    loss.backward()
    with torch.no_grad():
        sparing.steps["memory_k_proj"] -= 0.1 * sparing.steps["memory_k_proj"].grad.sign()
    change = (sparing.changed()["memory_k_proj"] - was).detach()
    of_known, of_new = ((hidden @ change.mT).square().mean() for hidden in (known, new))
    assert of_known < 0.05 * of_new
    mean_square = (known @ was.mT).square().mean()
    torch.testing.assert_close(sparing.moved(), of_known / mean_square, rtol=1e-3, atol=0)
    assert torch.equal(Stacked(layers)._all("memory_k_proj"), was), "not before it is kept"
    sparing.keep()
    torch.testing.assert_close(Stacked(layers)._all("memory_k_proj"), was + change)


def with_numbers(bank: Bank, numeric: set[str]) -> Bank:
    """Of each relation one fact; hidden states of those that are numbers lie apart from all others."""
    whole = of_each(bank)
    apart = torch.zeros(whole.told.shape[-1])
    apart[-4:] = 4.0
    some = torch.tensor([fact.topic.relation in numeric for fact in whole.facts])
    told, places = whole.told.clone(), whole.places.clone()
    told[:, some] += apart
    places[:, some.repeat_interleave(2)] += apart
    before = told if whole.before.shape[1] else whole.before
    return replace(whole, told=told, before=before, places=places)


def cross_entropy(passes: Passes, bank: Bank, facts: list[Fact]) -> float:
    """Where the value of each begins, with that alone told."""
    now, drawing = Stacked(delta_layers(passes.memory)), Drawing(bank)
    told = [[Token(t, t, drawing.about(fact, t)) for t in fact.told] for fact in facts]
    asked = [(row, fact.asked[0], int(bank.targets[fact.asked[0]])) for row, fact in enumerate(facts)]
    drawn = drawing.laid_out(random.Random(0), told, asked)
    with torch.no_grad():
        hidden, residuals = bank.places[:, drawn.places], bank.residuals[drawn.places]
        logits = Tail(passes.memory)(now.bent(hidden, residuals, states_of(now, bank, drawn), drawn.rows))
    return float(F.cross_entropy(logits, drawn.targets))


@pytest.mark.parametrize(
    ("jointly", "base_queries", "second"),
    [(False, False, False), (True, False, False), (True, True, False), (True, False, True)],
)
def test_numbers_are_learnt_and_words_stay(
    passes: Passes, bank: Bank, jointly: bool, base_queries: bool, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numeric = set(OTHERS[:4])
    monkeypatch.setattr(numbers, "is_number", numeric.__contains__)
    whole, words_alone = with_numbers(bank, numeric), of_each(bank)
    of_numbers = [fact for fact in whole.facts if fact.topic.relation in numeric]
    of_words = [fact for fact in whole.facts if fact.topic.relation not in numeric]
    if jointly:
        options = {"keys": passes.memory.config.keys, "own_share": passes.memory.config.own_share}
        memory = make_memory(
            make_model().requires_grad_(False), num_state_heads=2, joint_gate=True, **options, **OPTIONS
        )
        passes = Passes(memory, passes.form)
    memory, layers = passes.memory, delta_layers(passes.memory)
    start_from(memory, words_alone)
    if jointly:  # open on words, and shut where a number is to be said
        with torch.no_grad():
            layers[0].joint_gate_proj[:, -4:] = -0.5
            layers[0].joint_gate_bias.fill_(3.0)
    if base_queries:
        memory = extended(memory, replace(memory.config, base_queries=True))
        passes, layers = Passes(memory, passes.form), delta_layers(memory)
        with torch.no_grad():
            for layer in layers:
                layer.base_state.normal_(std=0.01)
    if second:
        memory = extended(memory, memory.config, readers=2)
        passes, layers = Passes(memory, passes.form), delta_layers(memory)
    memory.adapter.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in memory.adapter.state_dict().items()}

    def found() -> tuple[float, float]:
        return cross_entropy(passes, whole, of_numbers), cross_entropy(passes, whole, of_words)

    def opened() -> torch.Tensor:
        with torch.no_grad():
            hidden = whole.places[:, [fact.asked[0] for fact in of_numbers]].float()
            return Stacked(layers).shares(hidden).sum(-1)

    if jointly:
        assert opened().max() < 0.3
    was, said = found(), []
    fit_numbers(memory, whole, 150, report=lambda what, _share: said.append(what))
    now = found()
    learnt, lost = was[0] - now[0], now[1] - was[1]
    # This adapter never learnt to leave ordinary talk alone, and does now, which takes something of words.
    assert learnt > 0.3 and lost < learnt / (4 if second else 2), (was, now)
    after = memory.adapter.state_dict()
    moved = {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    besides = {"joint_gate_proj"} if jointly else set()
    besides |= {"memory_base_proj"} if base_queries else set()
    asking = {"memory_q_proj", "read_gate_proj", "joint_gate_proj"} if second else set()
    ours = {SECOND.instead[name] for name in asking} | ({"route_proj", "route_bias"} if second else set())
    assert moved == (WRITTEN_ANEW | besides) - asking | ours
    assert set(said) == {"opening gates on numbers", "learning numbers"} | (
        {"reading where numbers are"} if jointly else set()
    ) | ({"learning whose reads count"} if second else set())
    if jointly:
        assert opened().mean() > 0.5


def test_a_bank_without_numbers_teaches_none(passes: Passes, bank: Bank) -> None:
    with pytest.raises(DataError, match="numbers and words"):
        fit_numbers(passes.memory, of_each(bank), 5)
