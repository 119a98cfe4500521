"""Corrections at the last layer, and training on places, against the passes that training stands in for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken

from deltamem.chat_format import ChatFormat
from deltamem.config import DeltaMemConfig
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.passes import Passes
from deltamem.episodes.relation_data import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import split_words, told_pieces
from deltamem.errors import ConfigError, DataError, StateError
from deltamem.layer import told_of
from deltamem.memory import DeltaMemory
from deltamem.training.places import draw
from deltamem.training.places.bank import Bank, _early, build_bank, difficulty, joined
from deltamem.training.places.by_row import ByRow
from deltamem.training.places.draw import Drawing
from deltamem.training.places.keys import fit_keys, how_found
from deltamem.training.places.longer import lengthen
from deltamem.training.places.saying import Saying, fit_saying
from deltamem.training.places.start import pairs, start_from
from deltamem.training.places.step import PlacesStep
from deltamem.training.places.tail import Tail
from deltamem.training.places.vocabulary import _told_in, tell_vocabulary
from deltamem.training.recipe import Recipe
from deltamem.training.recorder import Recorder
from deltamem.training.run import extended
from deltamem.training.team import Team
from deltamem.training.trainer import Trainer
from deltamem.training.warm_start import delta_layers
from tests.conftest import make_memory, make_model, make_tokenizer
from tests.test_cached_training import Half
from tests.test_training import Words, few_people

OPTIONS: dict[str, Any] = {
    "delta_heads": ("o",),
    "corrections": "last",
    "state_update_mode": "no_lambda",
    "rankwise_gates": False,
    "read_gate": True,
    "base_state": True,
}
IDLE = [Question("hello", "yes", kind="ordinary")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Every byte is a token, and so are words to be remembered, after a space."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in Words().vocabulary])
    return tokenizer


@pytest.fixture(params=["own", "pair"])
def passes(tokenizer: Any, request: pytest.FixtureRequest) -> Passes:
    memory = make_memory(make_model().requires_grad_(False), num_state_heads=2, keys=request.param, **OPTIONS)
    return Passes(memory, ChatFormat.of(tokenizer))


@pytest.fixture
def people() -> SyntheticPeople:
    return few_people()


@pytest.fixture
def bank(passes: Passes, people: SyntheticPeople) -> Bank:
    return build_bank(passes, people, IDLE, 12)


# Corrections at the last layer


def test_no_hidden_state_before_the_last_layer_moves(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model, **OPTIONS)
    with torch.no_grad():
        memory.reset(2)
        with memory.writing():
            model(input_ids=ids(2, 20))
        told = memory.state.clone()
        with memory.reading():
            bent = model(input_ids=ids(2, 9, 1), use_cache=True)
        with memory.disabled():
            frozen = model(input_ids=ids(2, 9, 1), use_cache=True)
    assert torch.equal(memory.state.tensor, told.tensor)
    assert (bent.logits - frozen.logits).abs().max() > 1e-3
    for mine, theirs in zip(bent.past_key_values.layers, frozen.past_key_values.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


def test_what_all_layers_read_is_added_to_the_last_attention(ids: Callable[..., torch.Tensor]) -> None:
    """The definition: the corrections of all layers, summed, by hand."""
    model = make_model()
    memory = make_memory(model, **OPTIONS)
    tokens = ids(1, 9, 1)
    with torch.no_grad():
        with memory.writing():
            model(input_ids=ids(1, 20))
        seen: dict[int, torch.Tensor] = {}
        stop = memory.watch(lambda i, hidden: seen.__setitem__(i, hidden))
        with memory.disabled():
            model(input_ids=tokens)
        stop()
        added = torch.zeros(1, 9, 48)
        for i, layer in enumerate(memory.adapter):
            state = memory.state.tensor[i] + layer.base_state
            reads = torch.einsum("bhij,bthj->bthi", state, layer.queries(seen[i])).flatten(-2)  # type: ignore[operator]
            added += 16.0 / 8 * reads @ layer.delta_o_proj.T  # type: ignore[operator]
        with memory.reading():
            found = model(input_ids=tokens).logits
        handle = model.model.layers[-1].self_attn.o_proj.register_forward_hook(lambda _m, _a, out: out + added)
        with memory.disabled():
            expected = model(input_ids=tokens).logits
        handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_goes_to_the_last_layer_is_o_alone() -> None:
    for options in ({"delta_heads": ("q", "o")}, {"delta_heads": ("o",), "delta_o_rmsnorm": True}):
        with pytest.raises(ConfigError, match="corrections last"):
            DeltaMemConfig(corrections="last", **options)  # type: ignore[arg-type]
    assert "corrections" not in DeltaMemConfig().to_dict()
    kept = DeltaMemConfig(**OPTIONS)
    assert DeltaMemConfig.from_dict(kept.to_dict()) == kept


def test_checkpointing_is_refused_where_it_would_lose_gradients(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model, **OPTIONS)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with pytest.raises(StateError, match="checkpoint"), memory.writing():
        model(input_ids=ids(1, 5))


# Places


def test_a_place_says_what_the_whole_pass_says(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits worked out from the bank are those of running the window through the backbone."""
    monkeypatch.setattr("deltamem.training.places.bank._REST", 1.0)
    monkeypatch.setattr("deltamem.training.places.bank._FAMILIES", 0.0)
    monkeypatch.setattr("deltamem.training.places.bank._SINGLES", 0.0)
    rng = random.Random("places-0")
    made = sorted(
        (people.episode(rng, difficulty(rng), "train") for _ in range(4)),
        key=lambda e: e.length,
    )
    bank = build_bank(passes, people, IDLE, 4)
    step = PlacesStep(passes, Recipe(), bank, Team(cpu=True))
    asked = sorted(((i, q) for i, e in enumerate(made) for q in e.questions), key=lambda pair: len(pair[1].text))
    batch = read_batch(passes.form, asked)
    with torch.no_grad():
        state = passes.write(write_batch(passes.form, made), local_gradient=False)
        expected = passes.read(batch, state)[:, bank.candidates]
        rows = torch.cat([batch.rows[n, None].expand(int(c)) for n, c in enumerate((batch.targets != -100).sum(-1))])
        bent = step._bent(bank.places, bank.residuals, state.tensor, rows)
        found = Tail(passes.memory)(bent, bank.candidates)
    assert torch.equal(bank.targets, batch.expected()[0])
    assert torch.equal(bank.values, batch.values[batch.targets != -100] > 0)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # the bank is in bfloat16


def test_what_was_told_is_what_was_marked(passes: Passes, people: SyntheticPeople, bank: Bank) -> None:
    told = [t for f in bank.facts for t in f.told]
    assert set(told) == set(range(bank.told.shape[1])), "every told token belongs to a fact"
    asked = [p for f in (*bank.facts, *bank.unknown) for p in f.asked]
    assert len(asked) == len(set(asked)) and set(asked) <= set(range(len(bank.targets)))
    assert all(not f.told for f in bank.unknown) and bank.unknown
    assert torch.isin(bank.targets, bank.candidates).all() and bank.unsaid in bank.candidates


def test_banks_are_joined(passes: Passes, people: SyntheticPeople, bank: Bank) -> None:
    other = build_bank(passes, people, IDLE, 5, seed=2)
    both = joined([bank, other])
    for facts, theirs, ours in ((both.facts, other.facts, bank.facts), (both.unknown, other.unknown, bank.unknown)):
        assert list(facts[: len(ours)]) == list(ours) and len(facts) == len(ours) + len(theirs)
        for fact, own in zip(facts[len(ours) :], theirs, strict=True):
            assert (fact.topic, fact.early, fact.noted) == (own.topic, own.early, own.noted)
            assert torch.equal(both.told[:, fact.told], other.told[:, own.told])
            assert torch.equal(both.told_ids[fact.told], other.told_ids[own.told])
            assert torch.equal(both.targets[fact.asked], other.targets[own.asked])
            assert torch.equal(both.residuals[fact.asked], other.residuals[own.asked])
    assert torch.isin(other.candidates, both.candidates).all() and both.unsaid == bank.unsaid
    assert both.idle.shape[1] == len(both.idle_residuals) and both.before.shape[1] in (0, both.told.shape[1])


def test_what_is_told_alone_is_asked_for_where_others_are(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.bank.TOLD_ALONE", 3)
    bank = joined([build_bank(passes, people, IDLE, 12, seed=n, stock=6) for n in (1, 2)])
    assert len(bank.stock) > 12 and not any(f.asked or f.early or f.noted for f in bank.stock)
    own = {t for f in bank.facts for t in f.told}
    alone = {t: f for f in bank.stock for t in f.told}
    assert not own & alone.keys() and own | alone.keys() <= set(range(len(bank.told_ids)))
    monkeypatch.setattr(draw, "_STOCKED", 1.0)
    monkeypatch.setattr(draw, "_ALIKE", 0.0)
    drawing = Drawing(bank)
    topics = {p: f.topic for f in bank.facts for p in f.asked}
    drawn = drawing.histories(random.Random(0), 2, 20, 0.0, 1000)
    told = [{alone[int(t)].topic: alone[int(t)] for t in row if int(t) in alone} for row in drawn.told]
    asked = 0
    for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
        fact = told[row].get(topics[place])
        if fact is not None and bank.values[place]:
            asked += 1
            assert target == int(bank.told_ids[fact.told[0]]), "what is said is its own"
    assert asked > 20


def test_keys_are_altered_by_what_values_of_the_same_differ_in(
    passes: Passes, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Drawing(bank)
    drawn = drawing.histories(random.Random(1), 3, 30, 0.0, 1000)
    of = {t: f for f in bank.facts if not f.noted for t in f.told}
    moved = 0
    for told, other in zip(drawn.told[drawn.valid].tolist(), drawn.other[drawn.valid].tolist(), strict=True):
        if told != other:
            moved += 1
            assert of[told].topic == of[other].topic
    assert moved > 10
    step = PlacesStep(passes, Recipe(), bank, Team(cpu=True))
    hidden = bank.told[:, drawn.told.flatten()].float().unflatten(1, drawn.told.shape)
    far = torch.full(drawn.told.shape, 0.5)
    found = step._altered(hidden, bank.told, drawn, far)
    others = bank.told[:, drawn.other.flatten()].float().unflatten(1, drawn.told.shape)
    torch.testing.assert_close(found, (hidden + others) / 2)
    none = torch.zeros(0, dtype=torch.long)
    monkeypatch.setattr("deltamem.training.places.step._JITTER", 0.0)
    step._noise_sizes = [0.0] * len(step._noise_sizes)
    with torch.no_grad():
        moving, *_ = step._write(drawn, none)
        monkeypatch.setattr("deltamem.training.places.step._ALTERED", 0.0)
        plain, *_ = step._write(drawn, none)
    assert (moving[0] - plain[0]).abs().max() > 1e-3


def test_what_stands_before_a_value_is_kept_for_its_key(passes: Passes, people: SyntheticPeople) -> None:
    bank = build_bank(passes, people, IDLE, 12, seed=4)
    if passes.memory.config.keys == "own":
        assert bank.before.shape[1] == 0
        return
    assert bank.before.shape == bank.told.shape
    # Where two tokens of a value follow each other, the first stands before the second.
    pairs = [(a, b) for f in bank.facts for a, b in zip(f.told, f.told[1:], strict=False) if b == a + 1]
    same = [torch.equal(bank.before[:, b], bank.told[:, a]) for a, b in pairs]
    assert sum(same) > 0.7 * len(same) > 5, "most are of one value"
    nothing = (bank.before == 0).all(dim=2).all(dim=0)
    assert 0 < int(nothing.sum()) < len(nothing) / 4, "few messages begin with a value"


@pytest.fixture
def as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts are asked for at their own places, and told with their own values."""
    monkeypatch.setattr(draw, "_CROSSED", 0)
    monkeypatch.setattr(draw, "_SWAPPED", 0.0)


def test_a_value_told_before_its_topic_is_not_asked_for_among_others(bank: Bank, as_told: None) -> None:
    def told(text: str, *more: str) -> bool:
        return _early(Question("Dog?", "It is Rex.", "Rex"), Episode(tuple(Turn(t, "Ok.") for t in (text, *more)), ()))

    assert told("Rex is my dog.") and told("Hello! A Rex is what I drive.") and told("I love Rex, my favourite band.")
    assert not told("My dog is Rex.") and not told("Listen. I live in Rex.")
    assert told("My dog is Rex.", "No. Rex is my dog.")
    early = replace(bank, facts=[replace(f, early=n % 2 == 0) for n, f in enumerate(bank.facts)])
    places = {p for f in early.facts if f.early for p in f.asked}
    rng = random.Random(0)
    alone = Drawing(early).histories(rng, 1, 40, 0.0, 1000)
    assert places & set(alone.places.tolist())
    among = Drawing(early).histories(rng, 8, 20, 0.0, 1000)
    asked = set(among.places.tolist())
    assert asked and not asked & places
    told_too = {t for f in early.facts if f.early for t in f.told} & set(among.told[among.valid].tolist())
    assert told_too, "they are told all the same"


def test_how_replies_begin_is_kept_of_every_question(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = people.openings(random.Random(0))
    assert {q.topic for q in asked} >= {r.id for r in (*people.relations, *people.singles, *people.families)}
    held_out = {way for r in people.relations for way in (r.questions[-1], r.statements[-1].partition("{v}")[0])}
    assert not any(q.text.endswith(way) for q in asked for way in held_out)
    told = [q for q in asked if q.answer.startswith("Got it.")]
    assert {q.topic for q in told} >= {r.id for r in (*people.relations, *people.singles, *people.families)}
    assert 0.4 < sum(bool(q.earlier) for q in asked) / len(asked) < 0.6
    few = [*(q for q in asked if not q.earlier), *(q for q in asked if q.earlier)][-14::2]
    assert any(q.earlier for q in few)
    monkeypatch.setattr(people, "openings", lambda _rng: few)
    bank = build_bank(passes, people, IDLE, 2)
    words = [t for q in few for t in passes.form.text(q.answer)]
    assert bank.opening_targets.tolist() == words
    with torch.no_grad():
        batch = read_batch(passes.form, [(0, q) for q in few])
        expected = passes.read(batch, None)[:, bank.candidates]
        found = Tail(passes.memory)(bank.opening_residuals, bank.candidates)
    inside = batch.expected()[0] != passes.form.following[0]
    torch.testing.assert_close(found, expected[inside], atol=0.05, rtol=0.05)


def test_any_way_to_ask_goes_with_any_way_to_tell_and_with_any_value(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "_SWAPPED", 0.9)  # few values of so small a bank are words of one token
    topics = {p: f.topic for f in bank.facts for p in f.asked}
    noted = {p for f in bank.facts if f.noted for p in f.asked}
    assert noted, "and in the reply to a statement nothing but what it says is expected"
    drawn = Drawing(bank).histories(random.Random(0), 3, 30, 0.0, 2000)
    crossed = 0
    for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
        valid = drawn.valid[row]
        told, said = drawn.told[row][valid].tolist(), drawn.said[row][valid].tolist()
        if place in noted or not bank.values[place]:
            assert target == int(bank.targets[place])
            continue
        assert target in bank.told_ids[said]
        own = [f for f in bank.facts if f.topic == topics[place] and set(f.told) <= set(told)]
        assert own, "the topic was told"
        crossed += all(place not in f.asked for f in own)
    assert crossed > 10
    assert 0.05 < float((drawn.told != drawn.said)[drawn.valid].float().mean()) < 0.5


def test_a_word_of_several_is_swapped_alone(bank: Bank) -> None:
    """What is told and what is expected go together, word by word."""
    drawing = Drawing(bank)
    ids = bank.told_ids.tolist()
    longer = [f for f in drawing._apart if len({ids[t] for t in f.told}) > 1 and drawing._swappable.get(f.told[0])]
    assert longer
    for fact in longer:
        word, mine = drawing._swappable[fact.told[0]][0], {ids[t] for t in fact.told}
        other = next(n for n in drawing._words if ids[n] not in mine)
        expected = {p: int(bank.targets[p]) for p in fact.asked}
        expected |= {p: ids[other] for p, own in expected.items() if bank.values[p] and own == word}
        asked = drawing._asked(random.Random(0), 0, fact, {word: other})
        assert {p: t for _, p, t in asked if p in fact.asked} == expected
        assert set(expected.values()) & (mine - {word}) and ids[other] in expected.values()


def test_values_of_others_are_written_with_own_keys_and_gates(passes: Passes) -> None:
    layer: Any = passes.memory.adapter[0]
    x, y = torch.randn(2, 5, layer.hidden_size), torch.randn(2, 5, layer.hidden_size)
    with torch.no_grad():
        mixed = told_of(layer.config, layer.with_values(layer.told_products(x), y))
        own, others = layer.told(x), layer.told(y)
    assert torch.equal(mixed.k, own.k) and torch.equal(mixed.gates.write, own.gates.write)
    torch.testing.assert_close(mixed.v, others.v)


def test_histories_hold_different_topics_and_ask_about_them(bank: Bank, as_told: None) -> None:
    drawing = Drawing(bank)
    of = {place: fact for fact in bank.facts for place in fact.asked}
    for seed in range(20):
        drawn = drawing.histories(random.Random(seed), 3, 4, unknown=0.3, places=10)
        told = [set(drawn.told[row][drawn.valid[row]].tolist()) for row in range(4)]
        never = 0
        for place, row, target in zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.targets.tolist(), strict=True):
            if target == int(bank.targets[place]) and place in of:
                assert set(of[place].told) <= told[row], "what is asked about was told in that history"
            else:
                never += 1
                assert place not in of or not set(of[place].told) & told[row]
        assert never < len(drawn.places) and drawn.valid.any(1).all()


def gradients(
    passes: Passes, bank: Bank, team: Team, **recipe: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    passes.memory.adapter.requires_grad_(True)
    passes.memory.adapter.zero_grad()
    options = {"cached_questions": 12, "cached_facts": 4, "silence_weight": 0.5} | recipe
    parts = PlacesStep(passes, Recipe(**options), bank, team, Saying(passes.memory, bank)).backward(random.Random(3))
    return parts, {n: p.grad.clone() for n, p in passes.memory.adapter.named_parameters() if p.grad is not None}


def test_the_shares_of_two_processes_add_up(passes: Passes, bank: Bank) -> None:
    whole, grads = gradients(passes, bank, Team(cpu=True), say_weight=0.5)
    assert {"value", "start", "rest", "ordinary", "say", "gates", "overlap", "loss", "accuracy"} <= whole.keys()
    halves = [gradients(passes, bank, Half(rank), say_weight=0.5) for rank in (0, 1)]
    for name, grad in grads.items():
        torch.testing.assert_close(sum(h[1][name] for h in halves), grad, atol=1e-5, rtol=1e-3)
    assert sum(h[0]["value"] for h in halves) == pytest.approx(whole["value"], rel=1e-4)


def test_saying_is_learnt_in_steps_on_places_by_its_weight(passes: Passes, bank: Bank) -> None:
    without, plain = gradients(passes, bank, Team(cpu=True))
    weighed, grads = gradients(passes, bank, Team(cpu=True), say_weight=2.0)
    assert "say" not in without and weighed["loss"] == pytest.approx(without["loss"] + 2 * weighed["say"], rel=1e-4)
    changed = {n.rpartition(".")[2] for n, grad in grads.items() if not torch.allclose(grad, plain[n], atol=1e-6)}
    assert changed == {"memory_v_proj", "delta_o_proj"}


def test_every_part_of_the_adapter_learns(passes: Passes, bank: Bank) -> None:
    _, grads = gradients(passes, bank, Team(cpu=True))
    parts = {name.partition(".")[2] for name, grad in grads.items() if grad.abs().max() > 0}
    assert parts >= {"memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "delta_o_proj", "base_state",
                     "read_gate_proj"}  # fmt: skip


def test_steps_on_places_learn(tmp_path: Path) -> None:
    people = few_people()
    people.families, people.singles = [], people.relations
    memory = make_memory(make_model().requires_grad_(False), **OPTIONS)
    recipe = Recipe(steps=60, cached_steps=60, bank=12, cached_questions=24, cached_facts=2, warmup=2, ordinary=1,
                    reply_tokens=2, eval_every=100, save_every=30, seed=1, learning_rate=1e-2, key_steps=5, say_steps=5,
                    say_weight=0.5, vocabulary=1)  # fmt: skip
    passes = Passes(memory, ChatFormat.of(make_tokenizer()))
    said: list[str] = []
    trainer = Trainer(
        passes, recipe, tmp_path, people, team=Team(cpu=True), preparing=lambda what, _: said.append(what)
    )
    losses = [r.parts["value"] for r in trainer.run()]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert list(dict.fromkeys(said))[-3:] == [
        "telling every word there is", "telling keys apart", "learning to say what is read"
    ]  # fmt: skip
    assert "reading what is told and asked" in said


def test_places_are_laid_out_by_row_and_back() -> None:
    rows = torch.tensor([2, 0, 2, 4, 0, 2])
    by_row = ByRow(rows, 6)
    x = torch.arange(12.0).view(6, 2)
    laid = by_row.padded(x)
    assert laid.shape == (6, 3, 2) and torch.equal(by_row.flat(laid), x)
    for row in range(6):
        assert torch.equal(laid[row, : int((rows == row).sum())], x[rows == row])
    assert not laid[1].any() and not laid[4, 1:].any()


def test_what_differs_in_a_noun_is_told_and_asked_for_together(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = SyntheticPeople(Words())
    people.families = every.families
    monkeypatch.setattr("deltamem.training.places.bank._FAMILIES", 1.0)
    monkeypatch.setattr("deltamem.training.places.bank._SINGLES", 0.0)
    bank = build_bank(passes, people, IDLE, 30, seed=3)
    of = {p: f.topic for f in (*bank.facts, *bank.unknown) for p in f.asked}

    def near(share: float) -> float:
        """How often what was never told is of a sort of which something was."""
        monkeypatch.setattr(draw, "_NEAR", share)
        drawing = Drawing(bank)
        drawn = drawing.histories(random.Random(0), 2, 40, 1.0, 2000)
        sorts = {n: sort_of(topic.relation) for topic, n in drawing._numbers.items()}
        told = [{sorts[int(n)] for n in a[v]} for a, v in zip(drawn.about, drawn.valid, strict=True)]
        never = (drawn.targets == bank.unsaid).nonzero()[:, 0].tolist()
        assert len(never) > 10
        about = [(of[int(drawn.places[i])], int(drawn.rows[i])) for i in never]
        return sum(sort_of(topic.relation) in told[row] for topic, row in about) / len(about)

    assert near(1.0) > max(0.9, near(0.0) + 0.2)


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


def test_a_backbone_whose_tail_is_another_is_refused(tokenizer: Any) -> None:
    for family, layers in (("gemma3", ()), ("llama", (0, 1))):
        memory = make_memory(make_model(family), target_layers=layers, **OPTIONS)
        with pytest.raises(DataError, match="--preset deltamem"):
            Tail(memory)


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


def test_keys_trained_on_their_own_are_found_from_more_places(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.bank.TOLD_ALONE", 3)
    monkeypatch.setattr("deltamem.training.places.keys._COMPARED", 24)
    bank = build_bank(passes, people, IDLE, 24, stock=6)
    before, said = how_found(passes.memory, bank), []
    fit_keys(passes.memory, bank, 60, report=lambda what, _share: said.append(what))
    after = how_found(passes.memory, bank)
    assert after.own > before.own + 0.1 and after.by_layer < before.by_layer
    assert abs(after.others) < 0.2 and after.nearest > before.nearest
    assert set(said) == {"telling keys apart"}


def test_names_are_what_both_a_told_token_and_a_place_have(
    passes: Passes, people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.training.places.bank.TOLD_ALONE", 3)
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
    few = people.openings(random.Random(0))[:9]
    monkeypatch.setattr(people, "openings", lambda _rng: few)
    bank = build_bank(passes, people, IDLE, 12)
    before = nearness(passes, bank)
    said: list[str] = []
    start_from(passes.memory, bank, report=lambda what, _share: said.append(what))
    assert nearness(passes, bank) > max(0.15, 3 * before)
    assert set(said) == {"fitting keys"}


def test_values_trained_on_their_own_are_said_beside_others(passes: Passes, people: SyntheticPeople) -> None:
    bank = build_bank(passes, people, IDLE, 12)
    keys = [layer.memory_k_proj.clone() for layer in delta_layers(passes.memory)]
    said: list[str] = []
    saying = Saying(
        passes.memory, bank, tell_vocabulary(passes, people, 1, report=lambda what, _share: said.append(what))
    )
    before = saying.right(torch.Generator().manual_seed(0))
    fit_saying(passes.memory, saying, 60, report=lambda what, _share: said.append(what))
    assert saying.right(torch.Generator().manual_seed(0)) > before + 0.2
    assert all(torch.equal(a, b.memory_k_proj) for a, b in zip(keys, delta_layers(passes.memory), strict=True))
    assert set(said) == {"telling every word there is", "learning to say what is read"}


def test_every_word_piece_but_those_held_out_is_told(passes: Passes, people: SyntheticPeople) -> None:
    told = tell_vocabulary(passes, people, 2)
    pieces = told_pieces(passes.form.tokenizer)
    heldout = {w for kind in ("name", "word") for w in split_words(passes.form.tokenizer, kind)["heldout"]}
    assert told.hidden.shape[:2] == (len(passes.memory.layer_indices), len(told.ids))
    assert {*pieces.first, *pieces.later} == set(told.ids.tolist())
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
