"""The handle on a model in training: where gradients go, and what checkpointing and compiling leave as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deltamem import DeltaMemory
from tests.conftest import make_memory, make_model

Ids = Callable[..., Tensor]


def loss_of(model: Any, memory: DeltaMemory, ids: Ids) -> Tensor:
    memory.reset(2)
    with memory.writing():
        model(input_ids=ids(2, 12, 1))
    with memory.reading():
        logits = model(input_ids=ids(2, 6, 2)).logits
    return logits.float().log_softmax(-1)[..., 3].mean()


def test_gradient_flows_through_the_state_and_not_into_the_backbone(model: Any, ids: Ids) -> None:
    model.requires_grad_(False)
    memory = make_memory(model)
    loss_of(model, memory, ids).backward()
    for layer in memory.adapter:
        for name in ("memory_k_proj", "memory_v_proj", "beta_proj", "delta_o_proj"):
            assert getattr(layer, name).grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gradient_checkpointing_changes_nothing(family: str, ids: Ids) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(family).requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)  # something must need a gradient below
        memory = make_memory(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        loss_of(model, memory, ids).backward()
        gradients.append([p.grad.clone() for p in memory.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-7, rtol=1e-4)


def test_a_state_from_inference_mode_can_be_trained_from(model: Any, ids: Ids) -> None:
    model.requires_grad_(False)
    memory = make_memory(model)
    with torch.inference_mode(), memory.writing():
        model(input_ids=ids(1, 6))
        kept = memory.state
    memory.state = kept
    with memory.writing():
        model(input_ids=ids(1, 6, 2))
    memory.state.tensor.sum().backward()
    assert memory.parameters()[0].grad is not None or memory.parameters()[1].grad is not None


def test_local_gradient_reaches_the_writer_through_the_state_alone(model: Any, ids: Ids) -> None:
    model.requires_grad_(False)
    memory = make_memory(model)
    with torch.no_grad(), memory.writing():
        model(input_ids=ids(1, 12))
    expected = memory.state.tensor
    memory.reset()
    with torch.no_grad(), memory.writing(local_gradient=True):
        out = model(input_ids=ids(1, 12)).logits
    assert not out.requires_grad
    torch.testing.assert_close(memory.state.tensor, expected)
    memory.state.tensor.sum().backward()
    last = memory.adapter[2]
    assert last.memory_v_proj.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert memory.adapter[0].delta_o_proj.grad is None  # type: ignore[union-attr]


def test_torch_compile_gives_the_same(ids: Ids) -> None:
    model = make_model()
    memory = make_memory(model)
    with torch.no_grad():
        with memory.writing():
            expected = model(input_ids=ids(1, 10)).logits
        state = memory.state.clone()
        memory.reset()
        compiled = torch.compile(model, backend="aot_eager")
        with memory.writing():
            actual = compiled(input_ids=ids(1, 10)).logits
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(memory.state.tensor, state.tensor, atol=1e-6, rtol=1e-4)
        with memory.disabled():
            torch.testing.assert_close(
                compiled(input_ids=ids(1, 10)).logits, model(input_ids=ids(1, 10)).logits, atol=1e-6, rtol=1e-5
            )
