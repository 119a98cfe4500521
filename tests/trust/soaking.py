"""Many turns with random commands in between; after each, memory, file and history are what a plain list says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deltamem.backbones.load import Backbone
from deltamem.inspection import Matrices
from deltamem.profile_chat import ProfileChat
from deltamem.profiles import ProfileStore, load_profile
from deltamem.profiles.history import History
from deltamem.profiles.versions import branch
from deltamem.session import Sampling

_WORDS = ("I live in Lisbon", "my dog is called Everest", "what do you know", "tea", "and trains", "?")


@dataclass
class Line:
    """What a profile ought to be: the states that led to the present one, and those undone."""

    past: list[Matrices]
    undone: list[Matrices] = field(default_factory=list)


def soak(backbone: Backbone, adapter: str, folder: Path, turns: int, seed: int = 0) -> dict[str, int]:
    """Chat at random; returns how often each command was used.

    Raises:
        AssertionError: a state was not what it ought to be.
    """
    rng = random.Random(seed)
    store = ProfileStore(folder)
    used: dict[str, int] = {}
    lines: dict[str, Line] = {}
    sampling = Sampling(temperature=0, max_tokens=3)
    name, said, read_only = "p0", 0, False

    def opened() -> ProfileChat:
        return ProfileChat(
            backbone, adapter, name, store=store, context=256, sampling=sampling, read_only=read_only, history=10_000
        )

    chat = opened()
    lines[name] = Line([_now(chat)])

    def say() -> None:
        nonlocal said
        list(chat.send(" ".join(rng.choices(_WORDS, k=rng.randrange(1, 9)))))
        said += 1
        if not read_only:
            lines[name].past.append(_now(chat))
            lines[name].undone.clear()

    def undo() -> None:
        line, wanted = lines[name], rng.randrange(1, 4)
        if read_only:
            return
        taken = chat.undo(wanted)
        assert taken == min(wanted, len(line.past) - 1), (taken, wanted, len(line.past))
        for _ in range(taken):
            line.undone.append(line.past.pop())

    def redo() -> None:
        line = lines[name]
        if read_only:
            return
        there = chat.redo()
        assert there == bool(line.undone)
        if there:
            line.past.append(line.undone.pop())

    def switch() -> None:
        nonlocal name, chat
        chat.close()
        there = [line for line in lines if store.exists(line)]  # read-only finds no others
        name = rng.choice(there) if read_only else rng.choice([*there, f"p{len(lines)}"])
        chat = opened()
        lines.setdefault(name, Line([_now(chat)]))

    def fork() -> None:
        target = f"p{len(lines)}"
        if store.exists(name) and len(lines) < 30:
            branch(store, name, target)
            lines[target] = Line(list(lines[name].past), list(lines[name].undone))

    def lock() -> None:
        nonlocal read_only, chat
        if store.exists(name):
            chat.close()
            read_only = not read_only
            chat = opened()

    def clear() -> None:
        chat.session.clear_window()

    commands: list[tuple[int, Callable[[], None]]] = [
        (12, say), (3, undo), (2, redo), (2, switch), (1, fork), (1, lock), (1, clear),
    ]  # fmt: skip
    try:
        while said < turns:
            (command,) = rng.choices([c for _, c in commands], [w for w, _ in commands])
            command()
            used[command.__name__] = used.get(command.__name__, 0) + 1
            _check(chat, store, name, lines[name])
    finally:
        chat.close()
    return used


def _now(chat: ProfileChat) -> Matrices:
    assert chat.session.state is not None
    return chat.session.state.matrices()


def _check(chat: ProfileChat, store: ProfileStore, name: str, line: Line) -> None:
    if not chat.read_only:
        np.testing.assert_array_equal(_now(chat), line.past[-1])
    if not store.exists(name):
        assert len(line.past) == 1 and not line.past[0].any()
        return
    profile = load_profile(store.path(name))
    np.testing.assert_array_equal(profile.matrices, line.past[-1])
    history = History(History.beside(store.path(name)), profile)
    log = history.line(profile.info.entry)
    assert len(log) == len(line.past), (len(log), len(line.past))
    # The whole log is read back now and then, its end every time.
    for at in range(len(log)) if len(log) % 50 == 0 else range(-1, -1 - min(3, len(log)), -1):
        np.testing.assert_array_equal(history.matrices(log[at].id), line.past[at])
