"""What signals do: in a chat, Ctrl-C ends a reply; to end the program, what is at hand is saved first."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def leaving() -> Iterator[None]:
    """Outside turns, SIGTERM and a closed terminal (SIGHUP) end the program the way /exit does."""

    def leave(number: int, _frame: FrameType | None) -> None:
        _exit_for(number)

    with _handled(dict.fromkeys(_ENDING, leave)):
        yield


@contextmanager
def stopping(session: Any) -> Iterator[None]:
    """During a turn: Ctrl-C ends the reply at the next token, and a second one the program. SIGTERM and SIGHUP end the
    reply too, and the program once what was said so far is saved.
    """
    asked: list[int] = []

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        session.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def leave(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        session.stop()

    with _handled({signal.SIGINT: interrupt, **dict.fromkeys(_ENDING, leave)}):
        try:
            yield
        except OSError:
            if not asked:
                raise  # with the terminal gone there is nowhere to show the rest; it is saved all the same
    if asked:
        _exit_for(asked[0])


@contextmanager
def finishing(trainer: Any) -> Iterator[list[int]]:
    """During training: Ctrl-C, SIGTERM and SIGHUP end it after the step it is at, with a checkpoint; a second Ctrl-C
    ends it at once. Gives the signals that came.
    """
    asked: list[int] = []

    def finish(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handled(dict.fromkeys((signal.SIGINT, *_ENDING), finish)):
        yield asked


@contextmanager
def _handled(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """These handlers by signal, and afterwards those there were."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_for(number: int) -> NoReturn:
    if number == getattr(signal, "SIGHUP", None):
        # Nothing that is printed on the way out can reach anybody, and failing to print must not look like a crash.
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(null, stream.fileno())
    raise SystemExit(128 + number)
