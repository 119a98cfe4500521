"""The handle on a model: any family, any attention, frozen when it should be, and states that are values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltamem import DeltaMemConfig, DeltaMemory, MemoryState
from deltamem.attach import dense_weight
from deltamem.errors import AttachError, StateError
from tests.conftest import FAMILIES, make_memory, make_model

Ids = Callable[..., Tensor]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_attaches_and_comes_back_bit_for_bit(
    family: str, attention: str, dtype: torch.dtype, ids: Ids
) -> None:
    model = make_model(family, attention, dtype)
    prompt = ids(2, 30)
    with torch.no_grad():
        frozen = model(input_ids=prompt).logits
        keys = set(model.state_dict())
        memory = make_memory(model, delta_heads=("q", "k", "v", "o"))
        assert set(model.state_dict()) == keys
        memory.reset(batch_size=2)
        with memory.writing():
            model(input_ids=prompt)
        assert memory.state.tensor.dtype == torch.float32
        assert (memory.state.norms() > 0).all()
        with memory.reading():
            bent = model(input_ids=prompt).logits
        assert not torch.equal(bent, frozen) and torch.isfinite(bent).all()
        with memory.disabled():
            assert torch.equal(model(input_ids=prompt).logits, frozen)
        memory.detach()
        assert torch.equal(model(input_ids=prompt).logits, frozen)
    assert set(model.state_dict()) == keys


def test_an_empty_state_reads_nothing(model: Any, ids: Ids) -> None:
    with torch.no_grad():
        frozen = model(input_ids=ids(1, 9)).logits
        memory = make_memory(model)
        with memory.reading():
            assert torch.equal(model(input_ids=ids(1, 9)).logits, frozen)


def test_a_call_outside_the_modes_reads(model: Any, ids: Ids) -> None:
    memory = make_memory(model)
    with torch.no_grad():
        with memory.writing():
            model(input_ids=ids(1, 9))
        before = memory.state
        with memory.reading():
            expected = model(input_ids=ids(1, 5, 1)).logits
        assert torch.equal(model(input_ids=ids(1, 5, 1)).logits, expected)
        assert memory.state.equal(before)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_token_by_token_is_the_whole_prompt(family: str, ids: Ids) -> None:
    model = make_model(family)
    memory = make_memory(model)
    prompt = ids(1, 20)
    with torch.no_grad(), memory.writing():
        whole = model(input_ids=prompt).logits
        expected = memory.state
        memory.reset()
        cache, parts = None, []
        for token in prompt.T:
            out = model(input_ids=token[None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(memory.state.tensor, expected.tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_read_nor_written(side: str, ids: Ids) -> None:
    model = make_model()
    memory = make_memory(model)
    short, padding = ids(1, 7), torch.full((1, 5), 257)
    parts = [padding, short] if side == "left" else [short, padding]
    mask = torch.cat([torch.zeros_like(p) if p is padding else torch.ones_like(p) for p in parts], 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), memory.writing():
        alone = model(input_ids=short).logits
        expected = memory.state.tensor
        memory.reset(2)
        both = torch.cat([torch.cat(parts, 1), ids(1, 12, 5)])
        masks = torch.cat([mask, torch.ones_like(mask)])
        out = model(
            input_ids=both, attention_mask=masks, position_ids=torch.cat([positions, torch.arange(12)[None]])
        ).logits
    torch.testing.assert_close(out[0][mask[0].bool()], alone[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(memory.state.tensor[:, 0], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_padding_can_be_given_where_the_mask_is_not_2d(model: Any, ids: Ids) -> None:
    memory = make_memory(model)
    memory.reset(2)
    causal = torch.full((2, 1, 6, 6), float("-inf")).triu(1)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    with torch.no_grad():
        with memory.writing(), pytest.raises(StateError, match="padding="):
            model(input_ids=ids(2, 6), attention_mask=causal)
        with memory.writing(padding=padding):
            model(input_ids=ids(2, 6), attention_mask=causal)
        batch = memory.state
        memory.reset(1)
        with memory.writing():
            model(input_ids=ids(2, 6)[1:, :4])
    torch.testing.assert_close(batch.tensor[:, 1:], memory.state.tensor, atol=1e-6, rtol=1e-4)


def test_an_error_in_a_call_leaves_the_memory_usable(model: Any, ids: Ids) -> None:
    memory = make_memory(model)
    with torch.no_grad(), memory.writing():
        with pytest.raises(StateError, match=r"reset\(batch_size=3\)"):
            model(input_ids=ids(3, 4))
        model(input_ids=ids(1, 4))
    assert (memory.state.norms() > 0).all()


def test_states_are_values_and_sessions_do_not_mix(model: Any, ids: Ids) -> None:
    memory = make_memory(model)

    def chat(pieces: list[Tensor], other: list[Tensor] | None) -> MemoryState:
        memory.reset()
        mine = theirs = memory.state.clone()
        for i, piece in enumerate(pieces):
            memory.state = mine
            with memory.writing():
                model(input_ids=piece)
            mine = memory.state.clone()
            if other is not None:
                memory.state = theirs
                with memory.writing():
                    model(input_ids=other[i])
                theirs = memory.state.clone()
        return mine

    with torch.no_grad():
        a, b = [ids(1, 8, s) for s in range(3)], [ids(1, 8, s) for s in range(10, 13)]
        assert chat(a, b).equal(chat(a, None))
        kept = memory.state.clone()
        with memory.writing():
            model(input_ids=ids(1, 3))
    assert not memory.state.equal(kept)


def test_a_batch_is_its_rows(model: Any, ids: Ids) -> None:
    memory = make_memory(model)
    prompts = ids(3, 10)
    with torch.no_grad():
        rows = []
        for prompt in prompts:
            memory.reset()
            with memory.writing():
                model(input_ids=prompt[None])
            rows.append(memory.state.clone())
        memory.reset(3)
        with memory.writing():
            model(input_ids=prompts)
    stacked = MemoryState.stack(rows)
    torch.testing.assert_close(memory.state.tensor, stacked.tensor, atol=1e-6, rtol=1e-4)
    assert stacked.select([1]).equal(rows[1])


def test_generate_writes_prompt_and_reply(model: Any, ids: Ids) -> None:
    memory = make_memory(model)
    prompt = ids(1, 6)
    with torch.no_grad(), memory.writing():
        reply = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, attention_mask=torch.ones(1, 6))
        written = memory.state
        memory.reset()
        model(input_ids=reply[:, :-1])  # the last token is chosen and never fed
    torch.testing.assert_close(written.tensor, memory.state.tensor, atol=1e-5, rtol=1e-4)


def test_only_some_layers(ids: Ids) -> None:
    model = make_model()
    memory = make_memory(model, target_layers=[2, 0])
    assert memory.state.layers == (0, 2) and memory.state.tensor.shape[0] == 2
    with torch.no_grad(), memory.writing():
        model(input_ids=ids(1, 5))
    assert (memory.state.norms() > 0).all()


# Segments


def test_segments_in_one_call_are_means_in_order(ids: Ids) -> None:
    model = make_model()
    memory = make_memory(model, memory_write_granularity="message_mean", target_layers=[1])
    seen: list[Tensor] = []
    stop = memory.watch(lambda _, hidden: seen.append(hidden))
    segments = torch.tensor([[5, 5, -1, 2, 2, 2, 9, -1], [0, 0, 0, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    memory.reset(2)
    with torch.no_grad(), memory.writing(segments=segments):
        model(input_ids=ids(2, 8), attention_mask=mask)
    stop()
    x, layer = seen[0], memory.adapter[0]
    assert isinstance(layer.memory_q_proj, nn.Parameter)
    means = [torch.stack([x[0, 3:6].mean(0), x[0, 0:2].mean(0), x[0, 6]]), x[1, :5].mean(0)[None]]
    for row, mean in enumerate(means):
        with torch.no_grad():
            expected = layer.read_and_write(mean[None], torch.zeros(1, 1, 8, 8))[1]  # type: ignore[operator]
        torch.testing.assert_close(memory.state.tensor[0, row : row + 1], expected, atol=1e-6, rtol=1e-4)


def test_a_segment_over_several_calls_is_the_segment_of_one_call(ids: Ids) -> None:
    model = make_model()
    memory = make_memory(model, memory_write_granularity="message_mean")
    prompt = ids(1, 12)
    with torch.no_grad(), memory.writing(segments=torch.zeros(1, 12, dtype=torch.long)):
        model(input_ids=prompt)
    expected = memory.state
    memory.reset()
    cache = None
    with torch.no_grad(), memory.writing():
        memory.open_segment()
        for part in prompt.split([5, 1, 6], dim=1):
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            assert (memory.state.tensor == 0).all()
            memory.state = memory.state.clone()  # an open segment travels with the state
        memory.close_segment()
    torch.testing.assert_close(memory.state.tensor, expected.tensor, atol=1e-6, rtol=1e-4)
    with pytest.raises(StateError, match="no segment"):
        memory.close_segment()


def test_ssw_without_segments_writes_token_by_token(ids: Ids) -> None:
    states = []
    for granularity in ("token", "sentence_mean"):
        model = make_model()
        memory = make_memory(model, memory_write_granularity=granularity)
        with torch.no_grad(), memory.writing():
            model(input_ids=ids(1, 9))
        states.append(memory.state)
    assert states[0].equal(states[1])


# Quantized weights, and models that do not fit


def test_nf4_weights_on_the_cpu(tmp_path: Any, ids: Ids) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # bitsandbytes packs by 32 outputs on some CPUs, so the tiny sizes of the other tests won't do.
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    with torch.no_grad():
        frozen = model(input_ids=ids(1, 9)).logits
        memory = make_memory(model, output_init="base_slice")
        q = model.model.layers[0].self_attn.q_proj
        weight = dense_weight(q)
        assert weight.shape == (q.out_features, q.in_features)
        assert (
            0
            < (weight - make_model(hidden_size=64, intermediate_size=128).model.layers[0].self_attn.q_proj.weight)
            .abs()
            .max()
            < 0.02
        )
        with memory.writing():
            model(input_ids=ids(1, 9))
        assert not torch.equal(model(input_ids=ids(1, 9)).logits, frozen)
        memory.detach()
        assert torch.equal(model(input_ids=ids(1, 9)).logits, frozen)


def test_a_model_without_separate_projections_is_refused_by_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

    with pytest.raises(AttachError, match=r"GPT2LMHeadModel has no decoder layers.*q_proj, k_proj"):
        DeltaMemory.attach(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)))
    phi = Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    with pytest.raises(AttachError, match=r"has no q_proj, k_proj, v_proj"):
        DeltaMemory.attach(Phi3ForCausalLM(phi))


def test_a_layer_that_is_not_there_is_refused(model: Any) -> None:
    with pytest.raises(AttachError, match="has 3 layers"):
        DeltaMemory.attach(model, DeltaMemConfig(target_layers=(7,)))


def test_attaching_twice_is_refused(model: Any) -> None:
    memory = make_memory(model)
    with pytest.raises(AttachError, match="detach"):
        make_memory(model)
    memory.detach()
    make_memory(model)


def test_a_state_of_another_shape_is_refused(model: Any) -> None:
    memory = make_memory(model)
    with pytest.raises(StateError, match="layers"):
        memory.state = MemoryState(torch.zeros(2, 1, 1, 8, 8), (0, 1))
    with pytest.raises(StateError, match="heads, r, r"):
        memory.state = MemoryState(torch.zeros(3, 1, 1, 4, 4), (0, 1, 2))


def test_a_copy_of_the_model_is_frozen_again(model: Any, ids: Ids) -> None:
    with torch.no_grad():
        frozen = model(input_ids=ids(1, 5)).logits
        twin = copy.deepcopy(model)
        memory = make_memory(model)
        with memory.writing():
            model(input_ids=ids(1, 5))
        assert torch.equal(twin(input_ids=ids(1, 5)).logits, frozen)


@pytest.mark.parametrize("init", ["zero", "random", "base_slice", "base_slice_fixed"])
def test_corrections_start_as_configured(model: Any, init: str) -> None:
    memory = DeltaMemory.attach(
        model, DeltaMemConfig(output_init=init, delta_heads=("q", "o"), base_slice_ref_width=3, online_gain=0.5)
    )
    for i, layer in enumerate(memory.adapter):
        attention = model.model.layers[i].self_attn
        assert (layer.delta_k_proj == 0).all() and (layer.delta_v_proj == 0).all()  # type: ignore[union-attr]
        for name in "qo":
            matrix = getattr(layer, f"delta_{name}_proj").detach()
            columns = {"zero": 0, "random": 8, "base_slice": 8, "base_slice_fixed": 3}[init]
            assert (matrix[:, columns:] == 0).all()
            if init.startswith("base_slice"):
                base = getattr(attention, f"{name}_proj").weight[:, :columns]
                torch.testing.assert_close(matrix[:, :columns], 0.5 * base / base.norm(dim=0))
