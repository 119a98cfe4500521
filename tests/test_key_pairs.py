"""Keys in pairs: by the definition, the same however a message is cut into calls, and never across messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.errors import ConfigError
from deltamem.key_pairs import Lending, lent
from deltamem.session import ChatSession, Sampling
from tests.conftest import make_memory, make_model
from tests.test_recorded import again, same
from tests.test_session import say

SPLITS = [[9], [4, 5], [1, 7, 1], [1] * 9]


def paired_memory(model: Any, **options: Any) -> DeltaMemory:
    return make_memory(
        model, **{"keys": "pair", "own_share": 0.5, "delta_heads": ("o",), "corrections": "last"} | options
    )


def fed(memory: DeltaMemory, tokens: torch.Tensor, split: list[int], **how: Any) -> torch.Tensor:
    """The state after the tokens (B, T), in calls of so many."""
    memory.reset(len(tokens))
    cache, at = None, 0
    for size in split:
        own = {name: mask[:, at : at + size] for name, mask in how.items()}
        with torch.no_grad(), memory.writing(**own):
            call = memory.model(input_ids=tokens[:, at : at + size], past_key_values=cache, use_cache=True)
        cache, at = call.past_key_values, at + size
    return memory.state.tensor.clone()


@pytest.mark.parametrize("fading", [0.0, 0.7])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_state_is_what_the_definition_says(share: float, fading: float, ids: Callable[..., torch.Tensor]) -> None:
    memory = paired_memory(make_model(), own_share=share, fading=fading)
    tokens, written = ids(1, 9), torch.tensor([[0, 1, 1, 1, 0, 0, 1, 1, 1]]).bool()
    seen: dict[int, torch.Tensor] = {}
    stop = memory.watch(seen.__setitem__)
    after = fed(memory, tokens, [9], written=written)
    stop()
    for i, layer in enumerate(memory.adapter):
        x = seen[i][0].double()
        state = torch.zeros(8, 8, dtype=torch.float64)
        passed = torch.zeros_like(x[0])
        for t in written[0].nonzero()[:, 0].tolist():
            follows = bool(t and written[0, t - 1])
            before = x[t - 1] if follows else torch.zeros_like(x[t])
            gate = torch.sigmoid(layer.beta_proj.double() @ before + layer.beta_bias.double())  # type: ignore[operator]
            own = 1 - (1 - share) * (1 if fading else gate.mean() if follows else 0)
            passed = before + fading * passed if follows else torch.zeros_like(x[t])
            key = torch.tanh(layer.memory_k_proj.double() @ (own * x[t] + passed))  # type: ignore[operator]
            key = key / key.norm().clamp_min(1e-12)
            value = layer.memory_v_proj.double() @ x[t]  # type: ignore[operator]
            beta = torch.sigmoid(layer.beta_proj.double() @ x[t] + layer.beta_bias.double())  # type: ignore[operator]
            state = (1 - beta)[:, None] * state + (beta * (value - state @ key))[:, None] * key
        torch.testing.assert_close(after[i, 0, 0].double(), state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fading", [0.0, 0.7])
@pytest.mark.parametrize("reads", ["all", "none"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_message_in_several_calls_is_the_message(
    split: list[int], reads: str, fading: float, ids: Callable[..., torch.Tensor]
) -> None:
    memory = paired_memory(make_model(), fading=fading)
    tokens, written = ids(1, 9), torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1, 1]]).bool()
    how = {"written": written} | ({} if reads == "all" else {"reads": torch.zeros_like(written)})
    whole, cut = fed(memory, tokens, [9], **how), fed(memory, tokens, split, **how)
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-4)
    own = make_memory(make_model(), delta_heads=("o",), corrections="last")
    assert not torch.allclose(fed(own, tokens, [9], **how), whole, atol=1e-2)


@pytest.mark.parametrize("fading", [0.0, 0.7])
def test_padding_and_other_sequences_lend_nothing(fading: float, ids: Callable[..., torch.Tensor]) -> None:
    memory, tokens = paired_memory(make_model(), fading=fading), ids(2, 9)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    both = fed(memory, tokens, [9], padding=padding)
    for row, length in ((0, 9), (1, 6)):
        alone = fed(memory, tokens[row : row + 1, :length], [length])
        torch.testing.assert_close(both[:, row], alone[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fading", [0.0, 0.7])
@pytest.mark.parametrize("between", ["reading", "disabled", "state", "reset"])
@pytest.mark.parametrize("size", [1, 4])
def test_what_comes_between_ends_a_message(
    between: str, size: int, fading: float, ids: Callable[..., torch.Tensor]
) -> None:
    memory, tokens = paired_memory(make_model(), fading=fading), ids(1, 8)

    def write(part: torch.Tensor) -> None:
        with torch.no_grad(), memory.writing():
            for at in range(0, part.shape[1], size):
                memory.model(input_ids=part[:, at : at + size])

    write(tokens[:, :4])
    kept = memory.state.clone()
    if between in ("reading", "disabled"):
        with torch.no_grad(), getattr(memory, between)():
            memory.model(input_ids=tokens[:, :size])
    elif between == "reset":
        memory.reset()
        kept = memory.state.clone()
    memory.state = kept if between == "state" else memory.state
    write(tokens[:, 4:])
    after = memory.state.tensor.clone()
    memory.reset()
    memory.state = kept
    write(tokens[:, 4:])
    torch.testing.assert_close(after, memory.state.tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fading", [0.0, 0.7])
@pytest.mark.parametrize("way", ["layers", "numpy"])
def test_recorded_replies_lend_as_others_do(
    tokenizer: Any, way: str, fading: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltamem.session.recorded import RecordedTokens
    from deltamem.token_steps import TokenSteps

    if way == "layers":
        monkeypatch.setattr(TokenSteps, "fit", lambda _: False)
    memory = paired_memory(make_model(), fading=fading)
    options: dict[str, Any] = {"sampling": Sampling(temperature=0, max_tokens=10), "context": 400, "trace": True}
    ordinary = ChatSession(memory.model, tokenizer, memory, **options)
    recorded = RecordedTokens(memory.model, memory, again)
    replayed = ChatSession(memory.model, tokenizer, memory, **options, recorded=recorded)
    for text in ("hello", "a second turn", "and a third"):
        assert say(replayed, text).reply == say(ordinary, text).reply
        same(ordinary, replayed)
    assert recorded.failure is None


def test_gradient_checkpointing_changes_nothing(ids: Callable[..., torch.Tensor]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)  # something must need a gradient below
        memory = make_memory(model, keys="pair", fading=0.5)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        memory.reset(2)
        with memory.writing():
            for part in ids(2, 12, 1).split([5, 7], dim=1):
                model(input_ids=part)
        with memory.reading():
            model(input_ids=ids(2, 6, 2)).logits.float().log_softmax(-1)[..., 3].mean().backward()
        gradients.append({n: p.grad.clone() for n, p in memory.adapter.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("memory_k_proj" in name for name in gradients[0])
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("config", [{}, {"keys": "pair"}], ids=str)
@pytest.mark.parametrize("share", [0.5, 1.5, -0.1])
def test_a_share_is_of_a_key_of_a_pair(config: dict[str, Any], share: float) -> None:
    if config and 0 <= share <= 1:
        assert DeltaMemConfig(own_share=share, **config).to_dict()["own_share"] == share
        return
    with pytest.raises(ConfigError, match="own_share"):
        DeltaMemConfig(own_share=share, **config)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_what_is_passed_on_fades_by_the_token_however_long_a_call_is(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    own, first = (
        torch.randn(2, length, 3, generator=generator).double(),
        torch.randn(2, 3, generator=generator).double(),
    )
    there = torch.rand(2, length, generator=generator) < 0.9
    expected, held = [], first
    for t in range(length):
        expected.append(held)
        held = (own[:, t] + 0.8 * held) * there[:, t, None]
    close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-5)
    close(lent(own, first, there, 0.8), torch.stack(expected, 1))
    lending = Lending(1, 0.8)
    lending.keep(0, first)
    halves = [
        lending.lend(0, own[:, a:b], there[:, a:b]) for a, b in ((0, length // 2), (length // 2, length)) if a < b
    ]
    close(torch.cat(halves, 1), torch.stack(expected, 1))
    close(lending.get(0, first), held)


@pytest.mark.parametrize("config", [{"keys": "own", "fading": 0.5}, {"keys": "pair", "fading": 1.0}], ids=str)
def test_what_fades_is_lent_and_fades(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fading"):
        DeltaMemConfig(**config)
    assert DeltaMemConfig(keys="pair", fading=0.7).to_dict()["fading"] == 0.7


def test_segments_have_no_token_before_them() -> None:
    with pytest.raises(ConfigError, match="keys pair"):
        DeltaMemConfig(keys="pair", memory_write_granularity="message_mean")
