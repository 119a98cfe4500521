"""A reply on the screen while it is made."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from deltamem.session import TextChunk
from deltamem_cli import replies


def test_a_reply_that_is_wider_than_the_screen_is_seen_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=30, height=6, soft_wrap=True, highlight=False)
    monkeypatch.setattr(replies, "out", console)
    seen: list[str] = []

    def events() -> Iterator[TextChunk]:
        yield TextChunk("first " + "and so on " * 30)
        yield TextChunk("until the very END")
        time.sleep(0.5)  # it is drawn eight times a second
        seen.append(screen.getvalue())

    replies.show_reply(events(), plain=False)
    assert "END" in seen[0], "its end, not what fits a line"
    assert "first" not in seen[0].rpartition("END")[0].splitlines()[-1]
    assert "first" in screen.getvalue().rpartition("END")[0], "the whole at the end"
