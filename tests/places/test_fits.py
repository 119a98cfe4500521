"""What is fitted before the first step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from deltamem.episodes.openings import openings
from deltamem.episodes.passes import Passes
from deltamem.episodes.relation_data import told_relations
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import split_words, told_pieces
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.training.fitting import stacked_weights
from deltamem.training.places import start
from deltamem.training.places.bank import Bank, with_words
from deltamem.training.places.builder import DIFFICULTY, Shares, build_bank
from deltamem.training.places.directions import Directions, Share
from deltamem.training.places.erasing import fit_erasing
from deltamem.training.places.keys import fit_keys, how_found
from deltamem.training.places.longer import lengthen
from deltamem.training.places.names import pairs, telling
from deltamem.training.places.saying import Saying, fit_saying
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import begin_keys_anew, start_from
from deltamem.training.places.tail import Tail
from deltamem.training.places.vocabulary import _told_in, tell_vocabulary
from deltamem.training.recorder import Recorder
from deltamem.training.run import extended
from deltamem.training.warm_start import delta_layers
from tests.places.conftest import IDLE
from tests.test_training import Words


def test_a_longer_adapter_says_what_it_said_until_it_is_trained(
    passes: Passes, bank: Bank, ids: Callable[..., torch.Tensor]
) -> None:
    memory, config = passes.memory, passes.memory.config
    model: Any = memory.model
    tokens = ids(1, 20)

    def said(of: DeltaMemory) -> torch.Tensor:
        of.reset()
        with torch.no_grad(), of.writing():
            model(input_ids=tokens)
        with torch.no_grad(), of.reading():
            return torch.as_tensor(model(input_ids=tokens).logits)

    with torch.no_grad():
        for layer in memory.adapter:
            layer.delta_o_proj.normal_()  # type: ignore[union-attr, operator]
            layer.base_state.normal_()  # type: ignore[union-attr, operator]
    expected = said(memory)
    longer = extended(memory, replace(config, rank=12))
    assert (longer.config.rank, longer.config.alpha) == (12, config.alpha * 12 / config.rank)
    lengthen(memory, longer, bank)
    new = [getattr(layer, f"memory_{p}_proj").unflatten(0, (2, 12))[:, 8:] for layer in longer.adapter for p in "kq"]
    assert all(weight.detach().abs().max() > 0 for weight in new)
    moved = (said(longer) - expected).abs().max()
    assert moved > 1e-4, "there are more numbers to tell facts apart by"
    with torch.no_grad():
        for weight in new:
            weight.zero_()
    torch.testing.assert_close(said(longer), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(DataError, match="--rank 10 can't"):
        extended(longer, replace(config, rank=10))
    assert extended(longer, config) is longer, "nobody asked for a rank"


def test_keys_that_begin_anew_are_found_and_the_rest_goes_on(passes: Passes, bank: Bank) -> None:
    wider = extended(passes.memory, replace(passes.memory.config, base_queries=True))
    anew = Passes(wider, passes.form)
    with torch.no_grad():
        for layer in wider.adapter:
            layer.base_state.normal_()  # type: ignore[union-attr, operator]
    before, were = {n: t.clone() for n, t in wider.adapter.state_dict().items()}, nearness(anew, bank)
    hidden = bank.openings[:, :20].float()
    stacked = Stacked(delta_layers(wider))
    said = stacked.of_base_state(hidden, stacked.queries(hidden)).clone()
    begin_keys_anew(wider, bank)
    after = wider.adapter.state_dict()
    moved = {n.rpartition(".")[2] for n, tensor in after.items() if not torch.equal(tensor, before[n])}
    assert moved == {"memory_q_proj", "memory_k_proj"}
    stacked = Stacked(delta_layers(wider))
    torch.testing.assert_close(stacked.of_base_state(hidden, stacked.queries(hidden)), said)
    assert nearness(anew, bank) > max(0.15, 3 * were)


def test_corrections_erase_and_other_facts_leave_what_was_told(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.DIFFICULTY", replace(DIFFICULTY, corrections=0.4))
    # Far apart: a model of three layers tells little.
    monkeypatch.setattr("deltamem.training.places.erasing._LEFT", 0.3)
    monkeypatch.setattr("deltamem.training.places.erasing._TAKEN", 1.5)
    bank = build_bank(passes, people, IDLE, 24, seed=5)
    wider = extended(passes.memory, replace(passes.memory.config, learned_erase=True))
    before = {n: t.clone() for n, t in wider.adapter.state_dict().items()}
    fit_erasing(wider, bank)
    moved = {n.rpartition(".")[2] for n, t in wider.adapter.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {"erase_proj", "erase_bias"}
    told = [f for f in bank.facts if f.told and not f.noted]
    sorts = [[t for f in told if f.corrects == corrects for t in f.told] for corrects in (True, False)]
    for i, layer in enumerate(delta_layers(wider)):
        gates = [layer.told(bank.told[i, some][None].float()).gates for some in sorts]
        corrected, plain = (float((g.erase / g.write).detach().nanmean()) for g in gates)
        assert corrected > 0.9 and corrected > plain + 0.4
    nobody = replace(bank, facts=[replace(f, corrects=False) for f in bank.facts])
    with pytest.raises(DataError, match="larger --bank"):
        fit_erasing(wider, nobody)


def nearness(passes: Passes, bank: Bank) -> float:
    """How much nearer the places of values lie to told tokens of their own topic than to others, over all layers."""
    facts = [f for f in bank.facts if not f.early and not f.noted]
    told = [(t, f.topic) for f in facts for t in f.told]
    asked = [(p, f.topic) for f in facts for p in f.asked if bank.values[p]]
    same = torch.tensor([[a == b for _, b in told] for _, a in asked])
    near = torch.zeros(same.shape)
    for i, layer in enumerate(passes.memory.adapter):
        mine = [t for t, _ in told]
        x = bank.told[i, mine].float() + (bank.before[i, mine].float() if bank.before.shape[1] else 0)
        keys = layer.told(x[None]).k[0]  # type: ignore[operator]
        queries = layer.queries(bank.places[i, [p for p, _ in asked]][None].float())[0]  # type: ignore[operator]
        near += torch.einsum("phr,thr->pt", queries, keys).detach()
    return float(near[same].mean() - near[~same].mean())


def few_ways(people: SyntheticPeople, count: int) -> None:
    """Have them ask, and tell of families, in so many ways and the last ones, and those of plain relations: a bank of a
    dozen episodes is to know most.
    """
    plain = {r.id: r.questions for r in told_relations()}
    people.singles = [
        replace(r, questions=tuple(dict.fromkeys((*r.questions[:count], *plain[r.id])))) for r in people.singles
    ]
    people.families = [
        replace(
            r,
            questions=(*r.questions[:count], r.questions[-1]),
            statements=(*r.statements[:count], r.statements[-1]),
        )
        for r in people.families
    ]


def test_keys_trained_on_their_own_are_found_from_more_places(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.TOLD_ALONE", 3)
    monkeypatch.setattr("deltamem.training.places.keys._COMPARED", 24)
    # A small model learns few names in so few steps.
    monkeypatch.setattr(people, "anybody", lambda rng, split: rng.choice(people._people[split]))
    few_ways(people, 18)
    # A backbone of bytes learns no numbers from a dozen episodes: they are single digits to it.
    bank = build_bank(passes, people, IDLE, 24, seed=5, stock=6, shares=Shares(numbers=0.0))
    before, said = how_found(passes.memory, bank), []
    fit_keys(passes.memory, bank, 240, report=lambda what, _share: said.append(what))
    after = how_found(passes.memory, bank)
    assert after.own > before.own + 0.1 and after.by_layer < before.by_layer
    assert after.after < after.own / 2
    assert abs(after.others) < 0.2 and after.nearest > before.nearest
    assert set(said) == {"telling keys apart"}


def test_names_are_what_both_a_told_token_and_a_place_have(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.builder.TOLD_ALONE", 3)
    bank = build_bank(passes, people, IDLE, 24, stock=6)
    named = pairs(bank)
    left_out = {t for f in bank.facts if f.early or f.noted for t in f.told}
    kept = {t for f in bank.facts if not (f.early or f.noted) for t in f.told}
    told = set(named.told.tolist())
    assert told & kept and not told & (left_out - kept)
    assert told & {t for f in bank.stock for t in f.told}
    of = {t: f for f in (*bank.stock, *bank.facts) if not f.noted for t in f.told}
    for t, n in zip(named.told.tolist(), named.told_about.tolist(), strict=True):
        topic, before = named.names[n]
        assert of[t].topic == topic
        if before is not None:
            assert before in bank.told_ids[of[t].told].tolist(), "it was told right before"


def test_the_start_finds_what_a_question_is_about(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = SyntheticPeople(Words())
    people.families, people.singles = every.families, every.singles
    few = openings(people, random.Random(0))[:9]
    monkeypatch.setattr("deltamem.training.places.builder.openings", lambda *_: few)
    bank = build_bank(passes, people, IDLE, 12)
    before = nearness(passes, bank)
    said: list[str] = []
    start_from(passes.memory, bank, report=lambda what, _share: said.append(what))
    assert nearness(passes, bank) > max(0.15, 3 * before)
    assert set(said) == {"learning to say what is read", "fitting keys"}


_LONG = 1000.0


def test_the_start_says_what_a_query_finds(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words as well that were told in place of values: without it, nothing read is heard beside the residual."""
    few_ways(people, 12)
    bank = build_bank(passes, people, IDLE, 12)
    # The backbone's residuals are ten times as long as what is read at first.
    far = replace(bank, residuals=_LONG * bank.residuals)
    bank = with_words(far, tell_vocabulary(passes, people, 1))
    told = len(bank.told_ids)
    for numbers, ids in (
        (torch.arange(told), bank.told_ids),
        (torch.arange(told, told + len(bank.words.ids)), bank.words.ids),
    ):
        monkeypatch.setattr(start, "_SAYING_STEPS", 0)
        start_from(passes.memory, bank)
        before = said_of_itself(passes, bank, numbers, ids)
        monkeypatch.setattr(start, "_SAYING_STEPS", 200)
        start_from(passes.memory, bank)
        assert said_of_itself(passes, bank, numbers, ids) > max(0.3, 2 * before)


def test_the_start_says_one_of_several_that_are_read(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learnt with nothing read along, the same is said less often beside others."""
    few_ways(people, 12)
    bank = build_bank(passes, people, IDLE, 12)
    numbers = torch.arange(len(bank.told_ids))
    monkeypatch.setattr(start, "_SAYING_STEPS", 1200)
    shares = []
    for most in (0.0, 32.0):
        monkeypatch.setattr(start, "_ALONG", min(most, 1.0))
        monkeypatch.setattr(start, "_MOST_ALONG", most)
        start_from(passes.memory, bank)
        shares.append(said_of_itself(passes, bank, numbers, bank.told_ids, along=8))
    assert shares[1] > max(0.3, shares[0] + 0.02)


def test_how_well_keys_are_found_is_measured_by_head(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What queries find of others' keys is a part that all heads have in common and one that each has for itself."""
    few_ways(people, 12)
    bank = build_bank(passes, people, IDLE, 12)
    # The directions in which most agrees: a model of three layers has few of those that tell a sort apart.
    monkeypatch.setattr(start, "Directions", partial(Directions, shares=(Share("all"),)))
    start_from(passes.memory, bank)
    cosines, named = start.found(passes.memory, bank, pairs(bank)), pairs(bank)
    assert cosines.own > 2 * cosines.others, "it is found, and others are not"
    weights = stacked_weights(passes.memory)
    squares: dict[tuple[int, int], list[float]] = {}
    with torch.no_grad():
        keys = weights.unit(weights.key, telling(passes.memory.config, bank, named.told))
        queries = weights.unit(weights.query, bank.places[:, named.asked].float())
        for n, told in enumerate(named.told_about.tolist()):
            for m, asked in enumerate(named.asked_about.tolist()):
                if told != asked and told in named.asked_about and asked in named.told_about:
                    square = (keys[:, n] * queries[:, m]).sum(-1).square().mean()
                    squares.setdefault((told, asked), []).append(float(square))
    expected = [sum(each) / len(each) for each in squares.values()]
    there = cosines.others**2 + cosines.others_by_head**2
    assert there == pytest.approx(sum(expected) / len(expected), rel=0.2)


@torch.no_grad()
def said_of_itself(passes: Passes, bank: Bank, numbers: torch.Tensor, ids: torch.Tensor, along: int = 0) -> float:
    """Share of told tokens that are said where a value is to come, when seven tenths of them are read, and a third of
    so many others.
    """
    stacked, config = Stacked(delta_layers(passes.memory)), passes.memory.config
    value, generator = stacked.values(bank.said(numbers).float()), torch.Generator().manual_seed(0)
    read = 0.7 * value
    for _ in range(along):
        others = value[:, torch.randperm(len(numbers), generator=generator)]
        read = read + 0.33 * torch.randn(*others.shape[:2], 1, generator=generator) * others
    read = read.unflatten(-1, (config.num_state_heads, config.rank)).transpose(0, 1)
    places = bank.values.nonzero()[:, 0]
    residuals = bank.residuals[places[torch.arange(len(ids)) % len(places)]]
    logits = Tail(passes.memory)(residuals + stacked.corrections(read), bank.candidates)
    return float((bank.candidates[logits.argmax(-1)] == ids).float().mean())


def test_values_trained_on_their_own_are_said_beside_others(passes: Passes, people: SyntheticPeople) -> None:
    few_ways(people, 12)
    bank = build_bank(passes, people, IDLE, 12, shares=Shares(numbers=0.0))
    keys = [layer.memory_k_proj.clone() for layer in delta_layers(passes.memory)]
    said: list[str] = []
    words = tell_vocabulary(passes, people, 1, report=lambda what, _share: said.append(what))
    saying = Saying(passes.memory, with_words(bank, words))
    right = saying.right(torch.Generator().manual_seed(0))
    before = saying.losses(torch.Generator().manual_seed(1))
    assert before.keys() == {"told", "untold", "rest", "unknown", "openings", "idle"}
    fit_saying(passes.memory, saying, 260, report=lambda what, _share: said.append(what))
    assert saying.right(torch.Generator().manual_seed(0)) > right + 0.1
    after = saying.losses(torch.Generator().manual_seed(1))
    assert all(after[name] < loss for name, loss in before.items() if name != "idle")
    assert all(torch.equal(a, b.memory_k_proj) for a, b in zip(keys, delta_layers(passes.memory), strict=True))
    assert set(said) == {"telling every word there is", "learning to say what is read"}


def test_every_word_piece_but_those_held_out_is_told(passes: Passes, people: SyntheticPeople) -> None:
    told = tell_vocabulary(passes, people, 2)
    pieces = told_pieces(passes.form.tokenizer)
    heldout = {w for kind in ("name", "word") for w in split_words(passes.form.tokenizer, kind)["heldout"]}
    assert told.hidden.shape[:2] == (len(passes.memory.layer_indices), len(told.ids))
    assert {*pieces.first, *pieces.later} == set(told.ids.tolist())
    assert set(pieces.later) >= set(told.ids[told.later].tolist()) - set(pieces.first)
    assert set(told.ids[~told.later].tolist()) == set(pieces.first)
    assert heldout and not heldout & {passes.form.tokenizer.decode([i]).strip() for i in told.ids.tolist()}


def test_a_token_told_beside_others_looks_as_if_it_were_told_alone(passes: Passes) -> None:
    before, ids = [5, 9, 7, 30], [11, 12, 13]
    together = _told_in(passes, before, ids)
    for n, token in enumerate(ids):
        alone = _told_in(passes, before, [token])
        here = torch.tensor([[False] * len(before) + [True]])
        with torch.no_grad(), passes.memory.disabled(), Recorder(passes.memory, here) as seen:
            passes.model.base_model(input_ids=torch.tensor([[*before, token]]))
        torch.testing.assert_close(together[:, n], alone[:, 0], atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(alone.float(), seen.stacked(), atol=2e-2, rtol=2e-2)
