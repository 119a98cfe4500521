"""Single tokens in numpy give the numbers of the layers, and write nothing where a call fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltamem import DeltaMemConfig, DeltaMemory
from tests.conftest import make_model

CONFIGS = {
    "default": DeltaMemConfig(output_init="base_slice"),
    "no lambda, o": DeltaMemConfig(delta_heads=("o",), state_update_mode="no_lambda", output_init="random"),
    "free lambda outside": DeltaMemConfig(
        couple_lambda=False, state_update_mode="lambda_outside", output_init="random"
    ),
    "heads": DeltaMemConfig(num_state_heads=4, rank=4, rankwise_gates=False, output_init="random"),
    "read gate": DeltaMemConfig(num_state_heads=2, rank=4, read_gate=True, output_init="random"),
    "read gate with a floor": DeltaMemConfig(read_gate=True, read_gate_floor=0.5, output_init="random"),
    "write gate with a floor": DeltaMemConfig(write_gate_floor=0.3, output_init="random"),
    "base state": DeltaMemConfig(num_state_heads=2, rank=4, base_state=True, output_init="random"),
    "base state with queries of its own": DeltaMemConfig(base_state=True, base_queries=True, output_init="random"),
    "heads, base state with queries of its own": DeltaMemConfig(
        num_state_heads=2, rank=4, base_state=True, base_queries=True, read_gate=True, output_init="random"
    ),
    "corrections at the last layer": DeltaMemConfig(
        num_state_heads=2, rank=4, delta_heads=("o",), corrections="last", read_gate=True, output_init="random"
    ),
    "one head, corrections at the last layer": DeltaMemConfig(
        delta_heads=("o",), corrections="last", read_gate=True, read_gate_floor=0.5, output_init="random"
    ),
    "joint gate": DeltaMemConfig(
        delta_heads=("o",), corrections="last", read_gate=True, joint_gate=True, output_init="random"
    ),
    "joint gate, base state with queries of its own": DeltaMemConfig(
        num_state_heads=2,
        rank=4,
        delta_heads=("o",),
        corrections="last",
        joint_gate=True,
        base_state=True,
        base_queries=True,
        output_init="random",
    ),
    "second reader": DeltaMemConfig(
        delta_heads=("o",), corrections="last", joint_gate=True, second_reader=True, output_init="random"
    ),
    "heads, second reader, base state": DeltaMemConfig(
        num_state_heads=2,
        rank=4,
        delta_heads=("o",),
        corrections="last",
        read_gate=True,
        read_gate_floor=0.3,
        joint_gate=True,
        second_reader=True,
        base_state=True,
        output_init="random",
    ),
    "third reader": DeltaMemConfig(
        delta_heads=("o",),
        corrections="last",
        read_gate=True,
        joint_gate=True,
        second_reader=True,
        third_reader=True,
        output_init="random",
    ),
    "third reader, read plainly": DeltaMemConfig(
        num_state_heads=2,
        rank=4,
        delta_heads=("o",),
        corrections="last",
        read_gate=True,
        read_gate_floor=0.3,
        joint_gate=True,
        second_reader=True,
        third_reader=True,
        plain_read=True,
        output_init="random",
    ),
    "read plainly, base state with queries of its own": DeltaMemConfig(
        delta_heads=("o",),
        corrections="last",
        joint_gate=True,
        base_state=True,
        base_queries=True,
        plain_read=True,
        output_init="random",
    ),
    "chosen of a table": DeltaMemConfig(
        delta_heads=("o",),
        corrections="last",
        joint_gate=True,
        second_reader=True,
        third_reader=True,
        plain_read=True,
        choices=3,
        choice_rank=5,
        output_init="random",
    ),
    "keys in pairs": DeltaMemConfig(keys="pair", own_share=0.5, write_gate_floor=0.2, output_init="random"),
    "keys that fade": DeltaMemConfig(keys="pair", own_share=0.5, fading=0.7, output_init="random"),
    "heads, keys in pairs": DeltaMemConfig(keys="pair", num_state_heads=2, rank=4, output_init="random"),
    "what is erased is learned": DeltaMemConfig(learned_erase=True, output_init="random"),
    "heads, what is erased is learned": DeltaMemConfig(
        learned_erase=True, num_state_heads=2, rank=4, rankwise_gates=False, keys="pair", output_init="random"
    ),
    "plain": DeltaMemConfig(normalize_qk=False, output_init="random"),
    "one layer": DeltaMemConfig(target_layers=(1,), output_init="random"),
}

PARTS = ("beta", "lambda", "read_gate", "second_read_gate", "third_read_gate", "base", "erase", "plain", "choice")


def lively(memory: DeltaMemory) -> None:
    """Weights at which every part shows."""
    torch.manual_seed(1)
    for layer in memory.adapter:
        for name, parameter in layer.named_parameters():
            if name.startswith(PARTS):
                nn.init.normal_(parameter, std=0.5)
            elif name.startswith(("joint", "second_joint", "third_joint", "route", "third_route")):
                nn.init.normal_(parameter, std=0.1)


def token_by_token(model: nn.Module, memory: DeltaMemory, ids: torch.Tensor, fast: bool) -> list[torch.Tensor]:
    memory.reset()
    cache, out = None, []
    for token in ids:
        # Gradient mode is what sends a token the long way.
        with memory.writing(), torch.set_grad_enabled(not fast):
            result = model(input_ids=token[None, None], past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        out.append(result.logits.detach())
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_at_a_time_is_what_the_layers_say(name: str, dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    memory = DeltaMemory.attach(model, CONFIGS[name])
    lively(memory)
    ids = torch.randint(0, 60, (12,), generator=torch.Generator().manual_seed(0))
    slow = token_by_token(model, memory, ids, fast=False)
    expected = memory.state.clone()
    fast = token_by_token(model, memory, ids, fast=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert expected.tensor.abs().max() > 0.01
    torch.testing.assert_close(memory.state.tensor, expected.tensor, atol=tolerance, rtol=tolerance)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_short_way_is_taken_and_leaves_read_only_and_silent_tokens_as_they_are() -> None:
    model = make_model()
    config = DeltaMemConfig(delta_heads=("o",), output_init="random", reads="reply")
    memory = DeltaMemory.attach(model, config)
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    token = torch.tensor([[5]])
    with torch.no_grad():
        with memory.disabled():
            frozen = model(input_ids=token).logits
        with memory.writing(reads=no):
            silent = model(input_ids=token).logits
        assert memory._runtime._steps is not None and memory._runtime._steps.states is not None
        written = memory.state.clone()
        with memory.reading(reads=yes):
            read = model(input_ids=token).logits
        with memory.writing(reads=yes, written=no):
            passed = model(input_ids=token).logits
    assert torch.equal(silent, frozen) and not torch.equal(read, frozen)
    assert torch.equal(passed, read)
    assert memory.state.equal(written) and written.tensor.abs().max() > 0


def test_a_prompt_after_single_tokens_goes_on_from_their_state() -> None:
    model = make_model()
    memory = DeltaMemory.attach(model, DeltaMemConfig(output_init="random"))
    ids = torch.tensor([[3, 9, 4, 7, 1]])
    with torch.no_grad(), memory.writing():
        model(input_ids=ids)
        whole = memory.state.clone()
        memory.reset()
        cache = model(input_ids=ids[:, :1], use_cache=True).past_key_values
        cache = model(input_ids=ids[:, 1:2], past_key_values=cache, use_cache=True).past_key_values
        model(input_ids=ids[:, 2:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(memory.state.tensor, whole.tensor, atol=1e-5, rtol=1e-5)


def test_training_the_weights_further_changes_what_single_tokens_write() -> None:
    model = make_model()
    memory = DeltaMemory.attach(model, DeltaMemConfig(output_init="random"))
    ids = torch.tensor([3, 9, 4])
    token_by_token(model, memory, ids, fast=True)
    with torch.no_grad():
        for layer in memory.adapter:
            layer.memory_v_proj.mul_(2)
            layer.beta_bias.add_(1)
    fast = token_by_token(model, memory, ids, fast=True)
    slow = token_by_token(model, memory, ids, fast=False)
    torch.testing.assert_close(fast[-1], slow[-1], atol=1e-5, rtol=1e-5)
    memory.adapter.requires_grad_(True)
    with memory.writing():
        model(input_ids=ids[None]).logits.sum().backward()
    assert memory.adapter[0].memory_q_proj.grad is not None


def test_a_token_that_fails_on_its_way_writes_nothing() -> None:
    model = make_model()
    memory = DeltaMemory.attach(model, DeltaMemConfig(output_init="random"))
    token_by_token(model, memory, torch.tensor([3, 9]), fast=True)
    before = memory.state.clone()

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    handle = model.model.layers[-1].mlp.register_forward_pre_hook(fail)
    with torch.no_grad(), memory.writing(), pytest.raises(RuntimeError, match="out of luck"):
        model(input_ids=torch.tensor([[4]]))
    handle.remove()
    assert memory.state.equal(before)
    with torch.no_grad(), memory.writing():
        model(input_ids=torch.tensor([[4]]))
    assert not memory.state.equal(before)
