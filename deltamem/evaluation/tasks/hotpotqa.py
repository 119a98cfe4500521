"""HotpotQA in the distractor setting: ten paragraphs are told, the question needs two of them."""

from __future__ import annotations

from pathlib import Path

from deltamem.episodes.episode import Turn
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.tasks.files import expect, read_rows
from deltamem.evaluation.tasks.squad import HEARD, SHORT_ANSWER, score


def hotpotqa_task(path: Path) -> Task:
    """Questions of a HotpotQA file, each with its own ten paragraphs.

    Raises:
        DataError: the file is something else.
    """
    histories: dict[str, list[Turn]] = {}
    items: list[Item] = []
    for row in read_rows(path):
        expect({"question", "answer", "context"} <= row.keys(), path, "a HotpotQA file (question, answer, context)")
        name = str(row.get("_id", row.get("id", len(items))))
        context = row["context"]
        # The original files hold pairs, the Hugging Face ones two lists.
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        histories[name] = [Turn(f"{title}: {''.join(sentences)}", HEARD) for title, sentences in pairs]
        labels = {"type": str(row.get("type", "?"))}
        items.append(Item(name, name, row["question"], (str(row["answer"]),), labels=labels))
    expect(bool(items), path, "a HotpotQA file")
    return Task("hotpotqa", histories, items, score, ("f1", "exact"), (("type",),), 24, SHORT_ANSWER)
