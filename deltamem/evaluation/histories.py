"""Histories of any length into states: in windows of bounded size, many conversations at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import write_batch
from deltamem.episodes.episode import Episode, Turn
from deltamem.episodes.passes import Passes
from deltamem.state import MemoryState


def turn_tokens(form: ChatFormat, turn: Turn) -> int:
    """Tokens a turn takes in a window, with what the template puts around it."""
    around = len(form.answer) + len(form.following)
    return len(form.text(turn.user)) + len(form.text(turn.reply)) + around


def windows(form: ChatFormat, turns: Sequence[Turn], limit: int) -> Iterator[list[Turn]]:
    """Cut a history into windows of at most `limit` tokens; a message that is longer is cut at a space."""
    window: list[Turn] = []
    used = 0
    for turn in turns:
        for part in _pieces(form, turn, limit):
            tokens = turn_tokens(form, part)
            if window and used + tokens > limit:
                yield window
                window, used = [], 0
            window.append(part)
            used += tokens
    if window:
        yield window


def _pieces(form: ChatFormat, turn: Turn, limit: int) -> Iterator[Turn]:
    while turn_tokens(form, turn) > limit:
        longer = turn.user if len(turn.user) >= len(turn.reply) else turn.reply
        # By characters, which are never fewer than tokens are bytes: a few rounds reach any limit.
        middle = len(longer) // 2
        cut = longer.rfind(" ", 1, middle + 1)
        cut = cut if cut > 0 else middle
        if cut < 1:
            break
        if longer is turn.user:
            yield from _pieces(form, Turn(turn.user[:cut], ""), limit)
            turn = Turn(turn.user[cut:].lstrip(" "), turn.reply)
        else:
            yield from _pieces(form, Turn(turn.user, turn.reply[:cut]), limit)
            turn = Turn("", turn.reply[cut:].lstrip(" "))
    yield turn


def write_histories(
    passes: Passes,
    histories: Mapping[str, Sequence[Turn]],
    window: int,
    batch: int,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, MemoryState]:
    """The state each history leaves, by its name.

    Args:
        passes: backbone and memory.
        histories: turns by name.
        window: tokens written in one go; the next window begins with nothing in the context but the opening.
        batch: histories written together.
        report: called with the windows written so far and their number.
    """
    cut = {name: list(windows(passes.form, turns, window)) for name, turns in histories.items()}
    total, done = sum(map(len, cut.values())), 0
    order = sorted(cut, key=lambda name: (len(cut[name]), sum(len(t.user) for part in cut[name] for t in part)))
    states: dict[str, MemoryState] = {}
    for start in range(0, len(order), batch):
        names = order[start : start + batch]
        passes.memory.reset(len(names))
        empty = passes.memory.state.clone()
        states |= {name: empty.select([i]) for i, name in enumerate(names)}
        for part in range(len(cut[names[-1]])):
            active = [name for name in names if part < len(cut[name])]
            with torch.no_grad():
                episodes = [Episode(tuple(cut[name][part]), ()) for name in active]
                before = MemoryState.stack([states[name] for name in active])
                after = passes.write(write_batch(passes.form, episodes), start=before).clone()
            states |= {name: after.select([i]) for i, name in enumerate(active)}
            done += len(active)
            if report is not None:
                report(done, total)
    return states
