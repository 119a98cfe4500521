"""Which replies are written: those to what tells something."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch

from deltamem import DeltaMemConfig, DeltaMemory, MemoryState
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import write_batch
from deltamem.episodes.episode import Episode, Turn
from deltamem.episodes.passes import Passes
from deltamem.errors import ConfigError
from deltamem.session import ChatSession, Sampling, TurnFinished
from tests.conftest import make_memory, make_model

MESSAGES = ["hello", "who is Tom", "12 345", "my dog", "a", "zebras & quails", "Is it so?", "no"]


@pytest.fixture
def memory(tokenizer: Any) -> DeltaMemory:
    """One that writes the replies to half of the messages."""
    model = make_model()
    every = make_memory(model, reads="reply")
    floor = median(told(every, tokenizer, text)[0] for text in MESSAGES)
    every.detach()
    return make_memory(model, reads="reply", reply_floor=floor)


def said(memory: DeltaMemory, tokenizer: Any, text: str, **options: Any) -> tuple[TurnFinished, MemoryState]:
    session = ChatSession(memory.model, tokenizer, memory, sampling=Sampling(temperature=0, max_tokens=9), **options)
    *_, last = session.send(text)
    assert isinstance(last, TurnFinished) and session.state is not None and last.reply_tokens > 0
    return last, session.state


def told(memory: DeltaMemory, tokenizer: Any, text: str) -> tuple[float, MemoryState]:
    """How far the message opened the gates, where they were widest, and what it left."""
    session = ChatSession(memory.model, tokenizer, memory, trace=True)
    list(session.ingest(text))
    assert session.writes is not None and session.state is not None
    return max(gate for _, gate in session.writes.tokens), session.state


def test_a_reply_is_written_where_the_message_before_it_told_something(memory: DeltaMemory, tokenizer: Any) -> None:
    written = []
    for text in MESSAGES:
        opened, alone = told(memory, tokenizer, text)
        last, state = said(memory, tokenizer, text)
        written.append(opened > memory.config.reply_floor)
        assert last.written_tokens == len(tokenizer(text)["input_ids"]) + written[-1] * last.reply_tokens
        assert torch.equal(state.tensor, alone.tensor) != written[-1]
    assert sum(written) == len(MESSAGES) / 2


def test_histories_are_written_as_in_a_chat(memory: DeltaMemory, tokenizer: Any) -> None:
    form, reply = ChatFormat.of(tokenizer), "ok, then"
    passes = Passes(memory, form)
    batch = write_batch(form, [Episode((Turn(text, reply),), ()) for text in MESSAGES])
    opened = torch.tensor([told(memory, tokenizer, text)[0] for text in MESSAGES])
    user = batch.written & ~batch.reads
    expected = torch.where((opened > memory.config.reply_floor)[:, None], batch.written, user)
    memory.reset(len(MESSAGES))
    with torch.no_grad(), memory.writing(written=expected, reads=batch.reads):
        passes.run(batch)
    wanted = memory.state.clone()
    found = passes.write(batch, local_gradient=False).clone()
    torch.testing.assert_close(found.tensor, wanted.tensor)
    again = passes.write(batch, local_gradient=False, start=found)
    assert not torch.allclose(again.tensor, found.tensor), "what was there stays, and is written to"


def test_each_reply_of_a_history_goes_by_its_own_message(memory: DeltaMemory, tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer)
    passes = Passes(memory, form)
    batch = write_batch(form, [Episode(tuple(Turn(text, "ok") for text in MESSAGES), ()), Episode((), ())])
    gates: list[torch.Tensor] = []
    memory.reset(2)
    with torch.no_grad(), memory.tracing(lambda _, seen: gates.append(seen)), memory.writing(reads=batch.reads):
        passes.run(batch)
    opened = torch.stack(gates).mean((0, 3, 4))[0]
    expected = batch.written.clone()
    for message in range(0, 2 * len(MESSAGES), 2):
        if opened[batch.segments[0] == message].max() <= memory.config.reply_floor:
            expected[0, batch.segments[0] == message + 1] = False
    assert 0 < (batch.written & ~expected).sum() < 2 * len(MESSAGES)
    memory.reset(2)
    with torch.no_grad(), memory.writing(written=expected, reads=batch.reads):
        passes.run(batch)
    wanted = memory.state.clone()
    torch.testing.assert_close(passes.write(batch, local_gradient=False).tensor, wanted.tensor)


def test_where_nothing_is_said_nothing_is_written(memory: DeltaMemory, tokenizer: Any) -> None:
    passes = Passes(memory, ChatFormat.of(tokenizer))
    for turns in ((), (Turn("", ""),), (Turn("", "so I say"),)):
        batch = write_batch(passes.form, [Episode(turns, ())] * 2)
        assert not passes.write(batch, local_gradient=False).tensor.any()


@pytest.mark.parametrize(("floor", "written"), [(0.0, True), (0.01, True), (0.99, False), (1.0, False)])
def test_all_replies_are_written_at_0_and_none_at_1(tokenizer: Any, floor: float, written: bool) -> None:
    memory = make_memory(make_model(), reply_floor=floor)
    assert (said(memory, tokenizer, "hello")[0].written_tokens > 5) == written


def test_reading_alone_writes_nothing(memory: DeltaMemory, tokenizer: Any) -> None:
    last, state = said(memory, tokenizer, "hello", mode="read")
    assert last.written_tokens == 0 and not state.tensor.any()


@pytest.mark.parametrize(
    "bad",
    [{"reply_floor": -0.1}, {"reply_floor": 1.1}, {"reply_floor": 0.5, "memory_write_granularity": "message_mean"}],
)
def test_floors_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="reply_floor"):
        DeltaMemConfig(**bad)
    assert "reply_floor" not in DeltaMemConfig().to_dict()
