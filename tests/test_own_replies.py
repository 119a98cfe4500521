"""Histories in which the backbone itself replies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deltamem.chat_format import ChatFormat
from deltamem.episodes.episode import Turn
from deltamem.episodes.passes import Passes
from deltamem.evaluation import own_replies
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.items import Item, Task
from deltamem.session import ChatSession, Sampling
from tests.conftest import make_memory, make_model

HISTORIES = {
    "a": [Turn("My dog is Rex.", "Ok."), Turn("My cat is Tom.", "Ok.")],
    "b": [Turn("My dog is Ann.", "Ok."), Turn("My son is Max.", "")],
}


def task() -> Task:
    items = [Item(name, name, "Dog?", ("Rex.",)) for name in HISTORIES]
    return Task("test", HISTORIES, items, lambda _item, reply: {"f1": float(bool(reply))}, ("f1",))


def test_every_message_is_replied_to_as_in_a_chat(tokenizer: Any) -> None:
    passes = Passes(make_memory(make_model()), ChatFormat.of(tokenizer))
    done: list[tuple[int, int]] = []
    found = own_replies.with_own_replies(task(), passes, 400, lambda n, of: done.append((n, of)))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)] and found.items == task().items
    sampling = Sampling(temperature=0, max_tokens=own_replies.OWN_REPLY_TOKENS)
    session = ChatSession(passes.memory.model, tokenizer, passes.memory, context=400, sampling=sampling)
    for turn in found.histories["a"]:
        for _ in session.send(turn.user):
            pass
        assert session.last is not None and turn.reply == session.last.reply and turn.reply != "Ok."
    assert [t.user for t in found.histories["b"]] == [t.user for t in HISTORIES["b"]]
    assert found.histories["b"][1].reply == "", "what is still to be replied to stays so"


def test_a_conversation_knows_nothing_of_another(tokenizer: Any) -> None:
    passes = Passes(make_memory(make_model()), ChatFormat.of(tokenizer))
    both = own_replies.with_own_replies(task(), passes, 400)
    alone = own_replies.with_own_replies(replace(task(), histories={"b": HISTORIES["b"]}), passes, 400)
    assert both.histories["b"] == alone.histories["b"]
    scripted = write_histories(passes, HISTORIES, 300, 2)
    own = write_histories(passes, both.histories, 300, 2)
    assert not own["a"].tensor.equal(scripted["a"].tensor), "what is replied is written"
