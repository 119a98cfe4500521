"""Corrections at the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltamem.config import DeltaMemConfig
from deltamem.errors import ConfigError, DataError, StateError
from deltamem.memory import DeltaMemory
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from tests.conftest import make_memory, make_model
from tests.places.conftest import OPTIONS


def entering(memory: DeltaMemory, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
    """What enters each adapted layer of the frozen backbone."""
    seen: dict[int, torch.Tensor] = {}
    stop = memory.watch(seen.__setitem__)
    with memory.disabled():
        memory.model(input_ids=tokens)
    stop()
    return seen


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
        seen = entering(memory, tokens)
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


def test_the_joint_gate_scales_all_that_a_token_reads(ids: Callable[..., torch.Tensor]) -> None:
    """The definition: what all layers add, times a gate of what enters all of them, by hand."""
    model = make_model()
    memory = make_memory(model, joint_gate=True, **OPTIONS)
    tokens = ids(1, 40, 1)
    added: list[torch.Tensor] = []

    with torch.no_grad():
        with memory.writing():
            model(input_ids=ids(1, 20))
        handle = model.model.layers[-1].self_attn.register_forward_hook(lambda _m, _a, out: added.append(out[0]))
        seen = entering(memory, tokens)
        with memory.reading():
            model(input_ids=tokens)
        logits = torch.zeros(1, 40)
        for i, layer in enumerate(memory.adapter):
            layer.joint_gate_proj.normal_(std=0.3)  # type: ignore[union-attr, operator]
            layer.joint_gate_bias.normal_(std=0.3)  # type: ignore[union-attr, operator]
            logits += seen[i] @ layer.joint_gate_proj[0] + layer.joint_gate_bias  # type: ignore[index, operator]
        opened = ((1 + logits) / 2).clamp(0, 1)[..., None]
        with memory.reading():
            model(input_ids=tokens)
        handle.remove()
    frozen, before, after = added
    assert (opened == 0).any() and (opened == 1).any() and ((opened > 0) & (opened < 1)).any()
    assert (before - frozen).abs().max() > 1e-3, "a gate that was not learnt is open"
    torch.testing.assert_close(after, frozen + opened * (before - frozen), atol=1e-5, rtol=1e-5)
    assert torch.equal(after[opened[..., 0] == 0], frozen[opened[..., 0] == 0])


@pytest.mark.parametrize("third", [False, True])
def test_all_layers_say_which_readers_reads_count(ids: Callable[..., torch.Tensor], third: bool) -> None:
    """The definition: what each reader adds, as far as its joint gate is open, shared out by the routes."""
    model = make_model()
    memory = make_memory(model, joint_gate=True, second_reader=True, third_reader=third, **OPTIONS)
    tokens = ids(1, 40, 1)
    added: list[torch.Tensor] = []
    layers = list(memory.adapter)
    routes = ["route", *["third_route"] * third]

    def of(**biases: float) -> torch.Tensor:
        """What is added with gates of such biases and no weights, or with the weights there are."""
        for layer in layers:
            for name, bias in biases.items():
                getattr(layer, name).fill_(bias)
        with memory.reading():
            model(input_ids=tokens)
        return added.pop() - frozen

    def opened(proj: str, bias: float) -> torch.Tensor:
        """How far a gate of all layers is open, with weights that are drawn here."""
        total = torch.zeros(1, 40)
        for i, layer in enumerate(layers):
            getattr(layer, f"{proj}_proj").normal_(std=0.2)
            total += seen[i] @ getattr(layer, f"{proj}_proj")[0] + bias
        return ((1 + total) / 2).clamp(0, 1)[..., None]

    with torch.no_grad():
        with memory.writing():
            model(input_ids=ids(1, 20))
        handle = model.model.layers[-1].self_attn.register_forward_hook(lambda _m, _a, out: added.append(out[0]))
        seen = entering(memory, tokens)
        frozen = added.pop()
        shut = {f"{route}_bias": -1.0 for route in routes}
        one = of(joint_gate_bias=1.0, **shut)
        later = [of(**(shut | {f"{route}_bias": 1.0})) for route in routes]
        expected = opened("joint_gate", 0.0) * one
        for name, route, reads in zip(("second", "third"), routes, later, strict=False):
            own, share = opened(f"{name}_joint_gate", 0.0), opened(route, 0.1)
            assert ((share > 0) & (share < 1)).any() and (reads - one).abs().max() > 1e-3
            expected = (1 - share) * expected + share * own * reads
        found = of(joint_gate_bias=0.0, **{f"{route}_bias": 0.1 for route in routes})
        handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for bad in ({"joint_gate": False}, {"base_queries": True, "base_state": True}):
        with pytest.raises(ConfigError, match="second_reader"):
            DeltaMemConfig(**(OPTIONS | {"joint_gate": True, "second_reader": True} | bad))
    with pytest.raises(ConfigError, match="third_reader"):
        DeltaMemConfig(joint_gate=True, third_reader=True, **OPTIONS)


@pytest.mark.parametrize("readers", [1, 3])
def test_what_is_read_plainly_is_heard_wherever_a_reader_is(ids: Callable[..., torch.Tensor], readers: int) -> None:
    """The definition, by hand: a product of what enters all layers, as far as all readers together are heard."""
    model = make_model()
    later = {"second_reader": readers > 1, "third_reader": readers > 1}
    memory = make_memory(model, joint_gate=True, plain_read=True, **later, **OPTIONS)
    tokens = ids(1, 40, 1)
    padding = torch.arange(40)[None] < 3
    layers: list[Any] = list(memory.adapter)
    added: list[torch.Tensor] = []

    def added_to_frozen() -> torch.Tensor:
        with memory.reading(padding=padding):
            model(input_ids=tokens)
        return added.pop() - frozen

    with torch.no_grad():
        with memory.writing():
            model(input_ids=ids(1, 20))
        handle = model.model.layers[-1].self_attn.register_forward_hook(lambda _m, _a, out: added.append(out[0]))
        seen = entering(memory, tokens)
        frozen = added.pop()
        gates = torch.zeros(1, 40, 2 * readers - 1)
        for i, layer in enumerate(layers):
            layer.joint_gate_bias.fill_(0.0)
            for name, parameter in layer.named_parameters():
                if name.endswith(("joint_gate_proj", "route_proj")):
                    parameter.normal_(std=0.2)
            gates += layer.joint_logits(seen[i])
        opened = ((1 + gates) / 2).clamp(0, 1).unbind(-1)
        open_at_all = opened[0]
        for own, route in zip(opened[1::2], opened[2::2], strict=True):
            open_at_all = (1 - route) * open_at_all + route * own
        assert (open_at_all == 0).any() and ((open_at_all > 0) & (open_at_all < 1)).any()
        without = added_to_frozen()
        plain = torch.zeros(1, 40, 48)
        for i, layer in enumerate(layers):
            layer.plain_read_proj.normal_(std=0.3)
            plain += 16.0 / 8 * seen[i] @ layer.plain_read_proj.T @ layer.delta_o_proj.T
        found = added_to_frozen()
        handle.remove()
        hidden = torch.stack([seen[i][0, 3:] for i in range(len(layers))])
        rows = torch.zeros(37, dtype=torch.long)
        together = Stacked(layers).bent(hidden, torch.zeros(37, 48), memory.state.tensor, rows)
    torch.testing.assert_close(together, found[0, 3:], atol=1e-5, rtol=1e-5)
    expected = (open_at_all * ~padding)[..., None] * plain
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found - without, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="plain_read"):
        DeltaMemConfig(plain_read=True, **OPTIONS)


def test_one_of_a_table_is_chosen_and_heard_wherever_a_reader_is(ids: Callable[..., torch.Tensor]) -> None:
    """The definition, by hand: a softmax of all layers' entries and of none, as far as all readers are heard."""
    model = make_model()
    memory = make_memory(model, joint_gate=True, plain_read=True, choices=3, choice_rank=5, **OPTIONS)
    tokens = ids(1, 40, 1)
    padding = torch.arange(40)[None] < 3
    layers: list[Any] = list(memory.adapter)
    added: list[torch.Tensor] = []
    handle = model.model.layers[-1].self_attn.register_forward_hook(lambda _m, _a, out: added.append(out[0]))

    def said() -> torch.Tensor:
        with memory.reading(padding=padding):
            model(input_ids=tokens)
        return added.pop()

    with torch.no_grad():
        seen = entering(memory, tokens)
        frozen = added.pop()
        asked, opened, logits = torch.zeros(1, 40, 5), torch.zeros(1, 40), []
        for i, layer in enumerate(layers):
            layer.joint_gate_bias.fill_(0.0)
            layer.joint_gate_proj.normal_(std=0.2)
            opened += layer.joint_logits(seen[i])[..., 0]
            asked += seen[i] @ layer.choice_proj.normal_(std=0.3).T
        opened = ((1 + opened) / 2).clamp(0, 1) * ~padding
        without = said()
        for layer in layers:
            logits.append(asked @ layer.choice_keys.normal_().T + layer.choice_bias.normal_(-4.0))
        each = torch.cat([*logits, torch.zeros(1, 40, 1)], dim=-1).exp()
        each = each / each.sum(-1, keepdim=True)
        assert each[..., -1].min() < 0.05 and each[..., -1].max() > 0.3
        values = torch.cat([layer.choice_values.normal_() for layer in layers], dim=1)
        expected = opened[..., None] * (each[..., :-1] @ values.T)
        found = said()
        handle.remove()
        hidden = torch.stack([seen[i][0, 3:] for i in range(len(layers))])
        rows = torch.zeros(37, dtype=torch.long)
        bent = Stacked(layers).bent(hidden, torch.zeros(37, 48), memory.state.tensor, rows)
    torch.testing.assert_close(found - without, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bent, (found - frozen)[0, 3:], atol=1e-5, rtol=1e-5)
    for bad in ({"choices": 3}, {"choice_rank": 3}, {"choices": -1, "choice_rank": -1}):
        with pytest.raises(ConfigError, match="choice_rank"):
            DeltaMemConfig(joint_gate=True, plain_read=True, **bad, **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="plain_read"):
        DeltaMemConfig(joint_gate=True, choices=3, choice_rank=3, **OPTIONS)


def test_what_goes_to_the_last_layer_is_o_alone() -> None:
    for options in ({"delta_heads": ("q", "o")}, {"delta_heads": ("o",), "delta_o_rmsnorm": True}):
        with pytest.raises(ConfigError, match="corrections last"):
            DeltaMemConfig(corrections="last", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="joint_gate"):
        DeltaMemConfig(joint_gate=True)
    assert not {"corrections", "joint_gate"} & DeltaMemConfig().to_dict().keys()
    kept = DeltaMemConfig(**OPTIONS)
    assert DeltaMemConfig.from_dict(kept.to_dict()) == kept


def test_checkpointing_is_refused_where_it_would_lose_gradients(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model, **OPTIONS)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with pytest.raises(StateError, match="checkpoint"), memory.writing():
        model(input_ids=ids(1, 5))


def test_a_backbone_whose_tail_is_another_is_refused(tokenizer: Any) -> None:
    for family, layers in (("gemma3", ()), ("llama", (0, 1))):
        memory = make_memory(make_model(family), target_layers=layers, **OPTIONS)
        with pytest.raises(DataError, match="--preset deltamem"):
            Tail(memory)
