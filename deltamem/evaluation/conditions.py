"""The conditions a question is put under: what is in the state, and what is in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import ask_tokens
from deltamem.episodes.episode import Question, Turn, in_window
from deltamem.evaluation.histories import turn_tokens
from deltamem.evaluation.items import Item
from deltamem.evaluation.retrieval import TurnIndex

Condition = Literal["frozen", "memory", "context", "retrieval", "memory+context", "memory+retrieval", "shuffled"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

READS_OWN_STATE = frozenset({"memory", "memory+context", "memory+retrieval"})


class Prompts:
    """Lays out the prompts of one task.

    Args:
        form: the chat format.
        context: most tokens of a prompt, the reply included.
        reply: tokens kept free for the reply.
        retrieve: most turns that retrieval puts into the prompt.
        instruction: put before every question.
    """

    def __init__(self, form: ChatFormat, context: int, reply: int, retrieve: int, instruction: str = "") -> None:
        self._form = form
        self._room = context - len(form.opening) - reply
        self._retrieve = retrieve
        self._instruction = instruction
        self._indices: dict[str, TurnIndex] = {}

    def ask(self, condition: Condition, item: Item, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a question after the opening, with what the condition puts before it, of `turns`."""
        bare = self._laid_out(item, item.earlier)
        room = self._room - len(bare)
        if condition.endswith("context"):
            kept = self._latest(turns, room)
        elif condition.endswith("retrieval"):
            kept = self._nearest(item.conversation, turns, item.question, room)
        else:
            return bare
        return self._laid_out(item, (*kept, *item.earlier))

    def _laid_out(self, item: Item, before: Sequence[Turn]) -> list[int]:
        text = f"{self._instruction} {item.question}" if self._instruction else item.question
        return ask_tokens(self._form, Question(text, "", earlier=in_window(before)))

    def _latest(self, turns: Sequence[Turn], room: int) -> Sequence[Turn]:
        first = len(turns)
        while first > 0 and (tokens := turn_tokens(self._form, turns[first - 1])) <= room:
            room -= tokens
            first -= 1
        return turns[first:]

    def _nearest(self, conversation: str, turns: Sequence[Turn], question: str, room: int) -> Sequence[Turn]:
        if conversation not in self._indices:
            self._indices[conversation] = TurnIndex(turns)
        kept = []
        for i in self._indices[conversation].best(question, self._retrieve):
            tokens = turn_tokens(self._form, turns[i])
            if tokens <= room:
                room -= tokens
                kept.append(i)
        return [turns[i] for i in sorted(kept)]  # in the order they were said
