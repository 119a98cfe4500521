"""MemoryAgentBench as it lies on the Hugging Face hub: one long context a row, many questions about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deltamem.episodes.episode import Turn
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.scoring import best_f1, exact_match, normalised
from deltamem.evaluation.tasks.files import expect, read_rows
from deltamem.evaluation.tasks.squad import HEARD

_CHUNK = 2000
"""Characters of a context that make one message."""


def memoryagentbench_task(path: Path) -> Task:
    """Rows of a file, or of a folder of files (parquet, JSON or JSON lines).

    Raises:
        DataError: the file is something else.
        MissingExtraError: a parquet file without pyarrow.
    """
    histories: dict[str, list[Turn]] = {}
    items: list[Item] = []
    for number, row in enumerate(read_rows(path)):
        expect(
            {"context", "questions", "answers"} <= row.keys() and len(row["questions"]) == len(row["answers"]),
            path,
            "MemoryAgentBench (rows have context, questions and as many answers)",
        )
        source = str((row.get("metadata") or {}).get("source", "?"))
        name = f"{source} {number}"
        histories[name] = [Turn(chunk, HEARD) for chunk in _chunks(row["context"])]
        for i, (question, answers) in enumerate(zip(row["questions"], row["answers"], strict=True)):
            right = (answers,) if isinstance(answers, str) else tuple(str(a) for a in answers)
            items.append(Item(f"{name}, {i}", name, question, right, labels={"source": source}))
    expect(bool(items), path, "MemoryAgentBench")
    return Task("memoryagentbench", histories, items, score, ("contains", "exact", "f1"), (("source",),), 48)


def score(item: Item, reply: str) -> dict[str, float]:
    """`contains`: a right answer stands in the reply; exact match and F1, all normalised."""
    said = f" {normalised(reply)} "
    return {
        "contains": float(any(f" {normalised(a)} " in said for a in item.answers if normalised(a))),
        "exact": exact_match(reply, item.answers),
        "f1": best_f1(reply, item.answers),
    }


def _chunks(text: str) -> Iterator[str]:
    while len(text) > _CHUNK:
        cut = max(text.rfind(mark, _CHUNK // 2, _CHUNK) + 1 for mark in ("\n", ". ", " ")) or _CHUNK
        yield text[:cut].strip()
        text = text[cut:]
    if text.strip():
        yield text.strip()
