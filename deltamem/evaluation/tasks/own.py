"""One's own chats: the last question of each is asked, what came before is the history."""

from __future__ import annotations

from pathlib import Path

from deltamem.episodes.episode import load_episodes
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.tasks.squad import score


def own_task(path: Path) -> Task:
    """Episodes of a JSON lines file, as `deltamem train-adapter --data` takes them.

    Raises:
        DataError: a line can't be used.
    """
    episodes = load_episodes(path)
    histories = {str(i): list(e.history) for i, e in enumerate(episodes)}
    items = [Item(str(i), str(i), q.text, (q.answer,)) for i, e in enumerate(episodes) for q in e.questions]
    return Task("jsonl", histories, items, score, ("f1", "exact"), (), 64)
