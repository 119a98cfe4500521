"""Where no token reads, all layers are written side by side: the same states, and nothing of a failed call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltamem import DeltaMemory, MemoryState
from tests.conftest import make_memory, make_model

OPTIONS: dict[str, dict[str, Any]] = {
    "as ours": {"state_update_mode": "no_lambda", "rankwise_gates": False, "read_gate": True, "write_gate_floor": 0.3},
    "published": {},
    "keys in pairs": {"keys": "pair", "own_share": 0.5, "num_state_heads": 2, "rank": 4},
    "keys that fade": {"keys": "pair", "own_share": 0.5, "fading": 0.7, "num_state_heads": 2, "rank": 4},
    "free lambda, heads": {"couple_lambda": False, "num_state_heads": 3, "rank": 4},
}


def written(memory: DeltaMemory, tokens: torch.Tensor, grad: bool, **how: torch.Tensor) -> tuple[Any, ...]:
    """The state and the gates seen after a call; with a gradient, layers go one by one."""
    memory.reset(len(tokens))
    empty = memory.state.tensor
    memory.state = MemoryState(torch.linspace(-1, 1, empty.numel()).view_as(empty), memory.layer_indices)
    seen: dict[int, torch.Tensor] = {}
    mute = torch.zeros(tokens.shape, dtype=torch.bool)
    with torch.set_grad_enabled(grad), memory.writing(reads=mute, **how), memory.tracing(seen.__setitem__):
        memory.model(input_ids=tokens)
    return memory.state.tensor.detach(), torch.stack([seen[i].detach() for i in sorted(seen)])


@pytest.mark.parametrize("most", [1, 16384])
@pytest.mark.parametrize("length", [1, 7, 150])
@pytest.mark.parametrize("name", OPTIONS)
def test_layers_side_by_side_write_what_they_write_one_by_one(
    name: str, length: int, most: int, ids: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem.told_aside.MOST_TOKENS", most)
    memory = make_memory(make_model(), reads="reply", **OPTIONS[name])
    tokens = ids(2, length)
    padding = torch.zeros(2, length, dtype=torch.bool)
    padding[1, : length // 3] = True
    told = torch.arange(length)[None].expand(2, -1) % 3 != 1
    for how in ({}, {"padding": padding}, {"written": told}, {"padding": padding, "written": told}):
        expected, actual = (written(memory, tokens, grad, **how) for grad in (True, False))
        for one, other in zip(expected, actual, strict=True):
            assert one.shape == other.shape and one.abs().max() > 0
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_a_call_that_fails_half_way_writes_nothing(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model, reads="reply")
    before = memory.state.clone()

    def fail(*_: Any) -> None:
        raise RuntimeError("half way")

    hook = model.model.layers[-1].register_forward_pre_hook(fail)
    with torch.no_grad(), memory.writing(reads=torch.zeros(1, 9, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match="half way"):
            model(input_ids=ids(1, 9))
        assert torch.equal(memory.state.tensor, before.tensor)
        hook.remove()
        model(input_ids=ids(1, 9))
    assert not torch.equal(memory.state.tensor, before.tensor)
