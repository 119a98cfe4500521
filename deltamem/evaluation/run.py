"""Running a task: write the histories, ask every question under every condition, greedily."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem.episodes.passes import Passes
from deltamem.evaluation.conditions import READS_OWN_STATE, Condition, Prompts
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.items import Item, Task
from deltamem.state import MemoryState

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class EvalOptions:
    """How a task is run.

    Attributes:
        conditions: which of them.
        context: tokens of the window, for histories in the prompt and for writing.
        retrieve: most turns that retrieval puts into the prompt.
        batch: questions and histories run together.
    """

    conditions: Sequence[Condition]
    context: int = 2048
    retrieve: int = 5
    batch: int = 16


@dataclass(frozen=True)
class Prediction:
    """A reply with its metrics."""

    condition: Condition
    item: Item
    reply: str
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values: a line of the predictions file."""
        return {
            "condition": self.condition,
            "id": self.item.id,
            "conversation": self.item.conversation,
            "question": self.item.question,
            "answers": list(self.item.answers),
            "reply": self.reply,
            "scores": self.scores,
            "labels": dict(self.item.labels),
        }


def evaluate(
    passes: Passes,
    task: Task,
    options: EvalOptions,
    done: Collection[tuple[str, str]] = (),
    report: Report = lambda *_: None,
) -> Iterator[Prediction]:
    """Ask what was not asked yet.

    Args:
        passes: backbone, memory and chat format.
        task: what to ask.
        options: how.
        done: (condition, item id) of what an earlier run asked already.
        report: gets progress.

    Yields:
        Predictions, in batches of one condition after another.
    """
    prompts = Prompts(passes.form, options.context, task.max_tokens, options.retrieve, task.instruction)
    todo = {c: [i for i in task.items if (c, i.id) not in done] for c in options.conditions}
    states = _states(passes, task, options, todo, report)
    total = sum(map(len, todo.values()))
    asked = 0
    for condition in options.conditions:
        asks = [(i, prompts.ask(condition, i, task.histories[i.conversation])) for i in todo[condition]]
        asks.sort(key=lambda pair: len(pair[1]))
        for start in range(0, len(asks), options.batch):
            report(f"asking: {condition}", asked, total)
            part = asks[start : start + options.batch]
            state = None
            if condition == "shuffled" or condition in READS_OWN_STATE:
                names = [_state_name(task, condition, item.conversation) for item, _ in part]
                state = MemoryState.stack([states[name] for name in names])
            replies = passes.reply([ids for _, ids in part], state, task.max_tokens)
            for (item, _), reply in zip(part, replies, strict=True):
                yield Prediction(condition, item, reply, task.score(item, reply))
            asked += len(part)
    report("asking", total, total)


def _state_name(task: Task, condition: Condition, conversation: str) -> str:
    """Whose state is read: one's own, or the next conversation's."""
    if condition != "shuffled":
        return conversation
    names = list(task.histories)
    return names[(names.index(conversation) + 1) % len(names)]


def _states(
    passes: Passes, task: Task, options: EvalOptions, todo: dict[Condition, list[Item]], report: Report
) -> dict[str, MemoryState]:
    needed = {
        _state_name(task, condition, item.conversation)
        for condition, items in todo.items()
        if condition == "shuffled" or condition in READS_OWN_STATE
        for item in items
    }
    histories = {name: turns for name, turns in task.histories.items() if name in needed}
    window = options.context - len(passes.form.opening)
    return write_histories(passes, histories, window, options.batch, lambda n, of: report("writing histories", n, of))
