"""What the options of `train-adapter` make of a preset, and which of them do not go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from deltamem import DeltaMemConfig
from deltamem.errors import ConfigError, DataError
from deltamem.training.run import extended
from deltamem_cli.train_adapter import TrainOptions, chosen_preset
from tests.conftest import make_memory, make_model


def options_of(**asked: Any) -> TrainOptions:
    given: dict[str, Any] = dict.fromkeys((f.name for f in fields(TrainOptions)), None)
    return TrainOptions(**given | {"preset": "places", "data": [], "config": {}, "recipe": {}} | asked)


@pytest.mark.parametrize(
    ("start", "config", "recipe", "said"),
    [
        (None, {}, {"gate_steps": 5}, "give --from"),
        (None, {}, {"keep_writing": True}, "give --from"),
        (None, {}, {"fit_erase": True}, "give --from"),
        (None, {}, {"new_keys": True}, "give --from"),
        (None, {}, {"number_steps": 5}, "give --from"),
        (None, {}, {"chat_steps": 5}, "give --from"),
        (None, {}, {"people_steps": 5}, "give --from"),
        (None, {}, {"begin_steps": 5}, "give --from"),
        ("x", {}, {"keep_writing": True, "new_keys": True}, "leave out --key-steps"),
        ("x", {"fading": 0.7}, {"keep_writing": True}, "--fading"),
        ("x", {}, {"keep_writing": True, "key_steps": 5}, "leave out --key-steps"),
        ("x", {}, {"keep_writing": True, "number_steps": 5}, "--number-steps"),
        ("x", {}, {"keep_writing": True, "people_steps": 5}, "--people-steps"),
        ("x", {"rank": 16}, {"keep_writing": True}, "--rank"),
        ("x", {}, {"steps": 0, "read_steps": 0}, "leaves nothing to train"),
        ("x", {}, {"joint_steps": 5, "ordinary": 0}, "on ordinary talk"),
        (None, {}, {"ordinary": 0}, "on ordinary talk"),
        (None, {"corrections": "own", "keys": "own"}, {"joint_steps": 5}, "--corrections own has none"),
    ],
)
def test_what_can_not_be_trained_is_refused(start: Any, config: Any, recipe: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        chosen_preset(options_of(start=start, config=config, recipe=recipe))


def test_gates_and_reading_alone_go_on_with_an_adapter() -> None:
    recipe = chosen_preset(options_of(start="x", recipe={"steps": 0, "read_steps": 0, "gate_steps": 9})).recipe
    assert recipe.gate_steps == 9 and not recipe.keep_writing
    erasing = chosen_preset(options_of(start="x", recipe={"steps": 0, "read_steps": 0, "fit_erase": True}))
    assert erasing.config.learned_erase and erasing.recipe.only_erasing
    assert not replace(erasing.recipe, say_steps=5).only_erasing, "values are said in replies"
    begun = chosen_preset(options_of(start="x", recipe={"steps": 0, "read_steps": 0, "begin_steps": 9}))
    assert (
        begun.recipe.ends_on_places and begun.recipe.scale("plain_read_proj") == begun.recipe.scale("choice_keys") == 0
    )
    recipe = chosen_preset(options_of(start="x", recipe={"keep_writing": True, "begin_steps": 9})).recipe
    assert recipe.scale("memory_k_proj") == recipe.scale("memory_v_proj") == recipe.scale("beta_bias") == 0
    assert recipe.scale("erase_proj") == 0
    numbers = chosen_preset(options_of(start="x", recipe={"steps": 0, "read_steps": 0, "number_steps": 5})).recipe
    assert numbers.number_steps == 5 and numbers.ends_on_places and not numbers.joint_steps
    chats = {"steps": 0, "read_steps": 0, "chat_steps": 5, "keep_writing": True}
    assert chosen_preset(options_of(start="x", recipe=chats)).recipe.only_numbers, "nothing else is learnt"
    assert recipe.scale("memory_q_proj") and recipe.scale("delta_o_proj") and recipe.scale("read_gate_proj")


def test_the_gate_of_all_layers_comes_with_its_steps() -> None:
    last = {"delta_heads": ("o",), "corrections": "last", "rank": 64, "rankwise_gates": False}

    def gated(before: dict[str, Any], start: str | None = "x", **recipe: int) -> bool:
        config = chosen_preset(options_of(start=start, recipe=recipe)).config
        return extended(make_memory(make_model(), **before), replace(config, base_state=False)).config.joint_gate

    assert gated(last, joint_steps=5) and not gated(last) and not gated(last, joint_steps=0)
    assert gated(last | {"joint_gate": True}), "an adapter keeps it"
    with pytest.raises(DataError, match="--joint-steps"):
        gated({"rank": 64, "rankwise_gates": False}, joint_steps=5)  # no layer can wait for the others
    assert chosen_preset(
        options_of(start="x", recipe={"steps": 0, "read_steps": 0, "joint_steps": 5})
    ).recipe.joint_steps
    own = chosen_preset(options_of(config={"corrections": "own", "keys": "own"}))
    assert not own.config.joint_gate and not own.recipe.joint_steps


def test_what_is_read_weighs_the_same_with_any_rank() -> None:
    def scale(**config: Any) -> float:
        chosen: DeltaMemConfig = chosen_preset(options_of(config=config)).config
        assert chosen.rank == config.get("rank", 64)
        return chosen.alpha / chosen.rank

    assert scale() == scale(rank=8) == scale(rank=5) == 16


def test_an_adapter_that_is_carried_on_keeps_its_keys_unless_others_are_asked_for() -> None:
    def made_of(**config: Any) -> tuple[float, float]:
        wanted: DeltaMemConfig = chosen_preset(options_of(start="x", config=config)).config
        options = {"keys": "pair", "own_share": 0.2, "delta_heads": ("o",), "corrections": "last"}
        memory = make_memory(make_model(), **options)
        before = memory.adapter.state_dict()
        carried = extended(memory, replace(wanted, rank=8, base_state=False))
        assert all(torch.equal(tensor, before[name]) for name, tensor in carried.adapter.state_dict().items())
        return carried.config.own_share, carried.config.fading

    anew = chosen_preset(options_of(start="x", recipe={"new_keys": True})).config
    assert anew.base_queries and not chosen_preset(options_of(start="x")).config.base_queries
    assert made_of() == (0.2, 0.0)
    assert made_of(own_share=0.3, fading=0.7) == (0.3, 0.7)


def test_queries_of_its_own_ask_the_base_state_the_same_at_first(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model, read_gate=True, rankwise_gates=False, base_state=True, output_init="random")
    with torch.no_grad():
        for layer in memory.adapter:
            layer.base_state.normal_()  # type: ignore[union-attr, operator]
    tokens = ids(1, 9)
    with memory.writing(), torch.no_grad():
        expected = model(input_ids=tokens).logits
    wider = extended(memory, DeltaMemConfig(base_state=True, base_queries=True))
    assert wider.config.base_queries and extended(wider, DeltaMemConfig()) is wider
    with wider.writing(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, expected)
    for more in ({"rank": 16}, {"num_state_heads": 2}):
        with pytest.raises(DataError, match="one after the other"):
            extended(memory, DeltaMemConfig(base_state=True, base_queries=True, **more))


@pytest.mark.parametrize("more", [{"rank": 16}, {"num_state_heads": 2}])
def test_a_second_reader_asks_as_the_first_at_first_and_comes_after_more_heads_or_a_larger_rank(
    ids: Callable[..., torch.Tensor], more: dict[str, int]
) -> None:
    model = make_model()
    last: dict[str, Any] = {"delta_heads": ("o",), "corrections": "last", "joint_gate": True, "rankwise_gates": False}
    memory = make_memory(model, output_init="random", **last)
    with memory.writing(), torch.no_grad():
        expected = model(input_ids=ids(1, 9)).logits
    with pytest.raises(DataError, match=r"second reader.*take those first"):
        extended(memory, DeltaMemConfig(**more), readers=2)
    wider = extended(memory, DeltaMemConfig(), readers=2)
    assert wider.config.second_reader and extended(wider, DeltaMemConfig()) is wider
    assert not wider.config.third_reader
    with torch.no_grad():
        for layer in wider.adapter:
            layer.route_bias.fill_(0.1)  # type: ignore[union-attr, operator]
    with wider.writing(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids(1, 9)).logits, expected)
    with pytest.raises(DataError, match="second reader"):
        extended(wider, DeltaMemConfig(**more))
    widest = extended(wider, DeltaMemConfig(), readers=3)
    assert widest.config.third_reader
    with torch.no_grad():
        for layer in widest.adapter:
            layer.third_route_bias.fill_(0.1)  # type: ignore[union-attr, operator]
    with widest.writing(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids(1, 9)).logits, expected)


def test_keys_of_a_token_alone_count_all_of_it() -> None:
    chosen = chosen_preset(options_of()).config
    assert chosen.keys == "pair" and 0 < chosen.own_share < 1
    alone = chosen_preset(options_of(config={"keys": "own"})).config
    assert alone.own_share == 1 and alone.fading == 0
    with pytest.raises(ConfigError, match="own_share"):
        chosen_preset(options_of(config={"keys": "own", "own_share": 0.5}))


def test_what_is_read_plainly_is_nothing_at_first_and_takes_a_joint_gate(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    last: dict[str, Any] = {"delta_heads": ("o",), "corrections": "last", "rankwise_gates": False}
    memory = make_memory(model, output_init="random", **last)
    with memory.writing(), torch.no_grad():
        expected = model(input_ids=ids(1, 9)).logits
    with pytest.raises(DataError, match=r"--begin-steps.*--joint-steps"):
        extended(memory, DeltaMemConfig(), plainly=True)
    joint = DeltaMemConfig(joint_gate=True, **last)
    with pytest.raises(DataError, match="read plainly"):
        extended(memory, replace(joint, rank=16), plainly=True)
    wider = extended(memory, joint, plainly=True)
    assert wider.config.plain_read and wider.config.choices and wider.config.choice_rank
    assert extended(wider, DeltaMemConfig()) is wider
    there = make_memory(make_model(), **last, joint_gate=True, plain_read=True, choices=2, choice_rank=3)
    assert extended(there, DeltaMemConfig(), plainly=True) is there, "a table that is there is kept"
    with wider.writing(), torch.no_grad():
        assert torch.equal(model(input_ids=ids(1, 9)).logits, expected)
