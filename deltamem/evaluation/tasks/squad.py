"""SQuAD 2.0: a paragraph is told, its questions are asked, some of which it does not answer."""

from __future__ import annotations

from pathlib import Path

from deltamem.episodes.episode import Turn
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.scoring import best_f1, exact_match, says_unknown
from deltamem.evaluation.tasks.files import expect, read_rows

SHORT_ANSWER = "Answer in a few words."
HEARD = "I have read it."
"""The reply to a document, so that it is a turn like any other."""


def squad_task(path: Path) -> Task:
    """Paragraphs of a SQuAD file.

    Raises:
        DataError: the file is something else.
    """
    histories: dict[str, list[Turn]] = {}
    items: list[Item] = []
    for article in read_rows(path):
        expect("paragraphs" in article, path, "a SQuAD file (its articles have paragraphs)")
        for number, paragraph in enumerate(article["paragraphs"]):
            name = f"{article.get('title', '')} {number}"
            expect({"context", "qas"} <= paragraph.keys(), path, "a SQuAD file (paragraphs have context and qas)")
            histories[name] = [Turn(paragraph["context"], HEARD)]
            for qa in paragraph["qas"]:
                impossible = bool(qa.get("is_impossible"))
                answers = tuple(dict.fromkeys(a["text"] for a in qa.get("answers", ()))) if not impossible else ()
                labels = {"answerable": "no" if impossible else "yes"}
                items.append(Item(str(qa["id"]), name, qa["question"], answers, labels=labels))
    expect(bool(items), path, "a SQuAD file")
    return Task("squad", histories, items, score, ("f1", "exact"), (("answerable",),), 24, SHORT_ANSWER)


def score(item: Item, reply: str) -> dict[str, float]:
    """Exact match and F1, normalised; where there is no answer, whether the reply says so."""
    if not item.answers:
        unknown = float(says_unknown(reply) or not reply.strip())
        return {"f1": unknown, "exact": unknown}
    return {"f1": best_f1(reply, item.answers), "exact": exact_match(reply, item.answers)}
