"""A reply on the screen while it is made: plain text, or Markdown redrawn as it grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from deltamem.session import Ingested, TextChunk, TurnFinished
from deltamem_cli.terminal import clean, out, write


def show_reply(events: Iterator[Any], plain: bool) -> TurnFinished | None:
    """Show a turn's events; returns its end."""
    return _plain(events) if plain or not out.is_terminal else _markdown(events)


def _plain(events: Iterator[Any]) -> TurnFinished | None:
    finished = None
    for event in events:
        if isinstance(event, TextChunk):
            write(event.text)
        elif isinstance(event, TurnFinished):
            finished = event
    write("\n")
    return finished


def _markdown(events: Iterator[Any]) -> TurnFinished | None:
    """The tail that fits the screen while it grows, the whole as Markdown at the end."""
    text, finished = "", None
    with Live(Text("..."), console=out, transient=True, refresh_per_second=8, vertical_overflow="crop") as live:
        for event in events:
            if isinstance(event, Ingested) and not text and event.total > 1000:
                live.update(Text(f"reading {event.done} of {event.total} tokens", style="dim"))
            elif isinstance(event, TextChunk):
                text += clean(event.text)
                # The console wraps nothing on its own, and what is wider than the screen would be cut off.
                lines = Text(text).wrap(out, out.size.width, overflow="fold", no_wrap=False)
                live.update(Text("\n").join(lines[-max(1, out.size.height - 2) :]))
            elif isinstance(event, TurnFinished):
                finished = event
    out.print(Markdown(text, hyperlinks=False), soft_wrap=False)
    return finished
