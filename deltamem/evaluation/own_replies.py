"""Histories in which the backbone itself replies, as in a chat, in place of the replies that a task made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deltamem.episodes.episode import Turn
from deltamem.episodes.passes import Passes
from deltamem.evaluation.items import Task
from deltamem.session import ChatSession, Sampling

OWN_REPLY_TOKENS = 48
"""Longest of those replies."""


def with_own_replies(
    task: Task, passes: Passes, context: int, report: Callable[[int, int], None] | None = None
) -> Task:
    """The task, with every message of its histories said in a chat that remembers, and replied to greedily in it.

    What a person is told back is written once more, in the words that a question is answered in, so what is found in a
    chat hangs on it. One conversation begins with an empty state and knows nothing of the next.

    Args:
        task: what is asked afterwards, and of what.
        passes: backbone, memory and chat format.
        context: tokens of the window.
        report: called with the turns done so far and their number.
    """
    total, done = sum(map(len, task.histories.values())), 0
    histories: dict[str, list[Turn]] = {}
    sampling = Sampling(temperature=0, max_tokens=OWN_REPLY_TOKENS)
    for name, turns in task.histories.items():
        form, memory = passes.form, passes.memory
        session = ChatSession(
            memory.model, form.tokenizer, memory, context=context, sampling=sampling, stops=form.stops
        )
        said: list[Turn] = []
        for turn in turns:
            # What was replied to with nothing is still to be replied to, or goes on in the next message.
            for _event in session.send(turn.user) if turn.reply else session.ingest(turn.user):
                pass
            assert session.last is not None  # a turn that is over
            said.append(Turn(turn.user, session.last.reply))
            done += 1
            if report is not None:
                report(done, total)
        histories[name] = said
    return replace(task, histories=histories)
