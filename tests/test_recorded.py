"""Replies made of recorded tokens: the same words, states and gates, whatever happens between them.

Without a GPU there is nothing to record with: the recorded work is done again each time, on the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltamem import DeltaMemory
from deltamem.errors import BackboneError
from deltamem.session import ChatSession, Sampling
from deltamem.session.growing_cache import GrowingCache
from deltamem.session.recorded import RecordedTokens
from deltamem.token_steps import TokenSteps
from tests.conftest import make_memory, make_model
from tests.test_session import say


def again(work: Callable[[], None]) -> Callable[[], None]:
    work()
    return work


@pytest.fixture(params=["layers", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers' own way is a GPU's; single tokens on a CPU go another one."""
    if request.param == "layers":
        monkeypatch.setattr(TokenSteps, "fit", lambda _: False)


def pair(tokenizer: Any, memory: DeltaMemory, **options: Any) -> tuple[ChatSession, ChatSession, RecordedTokens]:
    """An ordinary session and a recorded one, on one model."""
    options = {"sampling": Sampling(temperature=0, max_tokens=10), "context": 400, "trace": True} | options
    recorded = RecordedTokens(memory.model, memory, again)
    ordinary = ChatSession(memory.model, tokenizer, memory, **options)
    return ordinary, ChatSession(memory.model, tokenizer, memory, **options, recorded=recorded), recorded


def same(one: ChatSession, two: ChatSession) -> None:
    assert one.state is not None and two.state is not None
    torch.testing.assert_close(one.state.tensor, two.state.tensor, atol=1e-5, rtol=1e-4)
    assert (one.writes is None) == (two.writes is None)
    if one.writes is not None and two.writes is not None:
        assert [t for t, _ in one.writes.tokens] == [t for t, _ in two.writes.tokens]
        assert [g for _, g in one.writes.tokens] == pytest.approx([g for _, g in two.writes.tokens], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_chat_is_the_same_and_two_of_them_do_not_mix(tokenizer: Any, family: str) -> None:
    ordinary, replayed, recorded = pair(tokenizer, make_memory(make_model(family)))
    for text in ("hello", "a second turn", "and a third, which is somewhat longer than those before it"):
        assert say(replayed, text).reply == say(ordinary, text).reply
        same(ordinary, replayed)
    assert recorded.failure is None and len(recorded._recordings) == 1


def test_after_an_undo_another_state_another_mode_and_another_system_prompt(tokenizer: Any) -> None:
    ordinary, replayed, recorded = pair(tokenizer, make_memory(make_model()))
    for session in (ordinary, replayed):
        say(session, "one")
        say(session, "two")
        assert session.undo()
    same(ordinary, replayed)
    kept = ordinary.state
    steps: list[Callable[[ChatSession], None]] = [
        lambda s: None,
        lambda s: setattr(s, "mode", "read"),
        lambda s: setattr(s, "mode", "off"),
        lambda s: setattr(s, "mode", "on"),
        lambda s: s.replace_state(None),
        lambda s: s.replace_state(kept),
        lambda s: s.set_system("Speak plainly."),
        lambda s: s.clear_window(),
    ]
    for change in steps:
        for session in (ordinary, replayed):
            change(session)
        assert say(replayed, "what now?").reply == say(ordinary, "what now?").reply
        same(ordinary, replayed)
    assert recorded.failure is None


def test_a_window_that_grows_and_overflows(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamem.session.growing_cache.SMALLEST", 64)
    ordinary, replayed, recorded = pair(tokenizer, make_memory(make_model()), context=256)
    evicted = False
    for number in range(8):
        text = f"turn {number} with some words in it that fill the window"
        theirs, ours = say(ordinary, text), say(replayed, text)
        assert ours.reply == theirs.reply and ours.window_tokens == theirs.window_tokens
        evicted |= ours.evicted
        same(ordinary, replayed)
    assert evicted and recorded.failure is None
    assert isinstance(replayed._window._cache, GrowingCache)
    assert replayed._window._cache.length == len(replayed._window)


def test_messages_are_written_whole_and_so_not_recorded(tokenizer: Any) -> None:
    memory = make_memory(make_model(), memory_write_granularity="message_mean")
    ordinary, replayed, recorded = pair(tokenizer, memory)
    assert say(replayed, "hello").reply == say(ordinary, "hello").reply
    same(ordinary, replayed)
    assert not recorded._recordings


def test_without_a_memory(tokenizer: Any) -> None:
    model = make_model()
    options: dict[str, Any] = {"sampling": Sampling(temperature=0, max_tokens=10), "context": 400}
    recorded = RecordedTokens(model, None, again)
    replayed = ChatSession(model, tokenizer, None, recorded=recorded, **options)
    assert say(replayed, "hello").reply == say(ChatSession(model, tokenizer, None, **options), "hello").reply
    assert list(recorded._recordings) == ["off"]


def fails(work: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nand so on")


def differs(work: Callable[[], None]) -> Callable[[], None]:
    """Does its work on a token that is none of the session's."""
    work()
    (token,) = (c.cell_contents._token for c in work.__closure__ or () if isinstance(c.cell_contents, RecordedTokens))

    def other() -> None:
        token.add_(7)
        work()

    return other


@pytest.mark.parametrize(("record", "why"), [(fails, "is capturing"), (differs, "not the same")])
def test_what_can_not_be_recorded_goes_the_ordinary_way(tokenizer: Any, record: Any, why: str) -> None:
    memory = make_memory(make_model())
    ordinary, _, _ = pair(tokenizer, memory)
    expected = say(ordinary, "hello").reply
    recorded = RecordedTokens(memory.model, memory, record)
    session = ChatSession(
        memory.model, tokenizer, memory, sampling=ordinary.sampling, context=400, trace=True, recorded=recorded
    )
    assert say(session, "hello").reply == expected
    same(ordinary, session)
    assert recorded.failure is not None and why in recorded.failure and "\n" not in recorded.failure


def test_a_sliding_window_is_refused() -> None:
    with pytest.raises(BackboneError, match="--compile off"):
        GrowingCache(make_model("gemma3"), 400)
