"""LoCoMo: very long conversations between two people, and questions about them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltamem.episodes.episode import Turn
from deltamem.errors import MissingExtraError
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.scoring import says_unknown, token_f1
from deltamem.evaluation.tasks.files import expect, read_rows
from deltamem.evaluation.tasks.squad import HEARD, SHORT_ANSWER

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


def locomo_task(path: Path) -> Task:
    """Conversations of a LoCoMo file. Both people's words are told by the user: neither of them is the backbone.

    Raises:
        DataError: the file is something else.
        MissingExtraError: snowballstemmer is not installed.
    """
    histories: dict[str, list[Turn]] = {}
    items: list[Item] = []
    for number, sample in enumerate(read_rows(path)):
        expect({"conversation", "qa"} <= sample.keys(), path, "a LoCoMo file (samples have conversation and qa)")
        name = str(sample.get("sample_id", number))
        histories[name] = _turns(sample["conversation"])
        for i, qa in enumerate(sample["qa"]):
            category = int(qa["category"])
            answers = () if category == 5 else (str(qa["answer"]),)
            labels = {"category": CATEGORIES.get(category, str(category))}
            items.append(Item(f"{name}, {i}", name, qa["question"], answers, labels=labels))
    expect(bool(items), path, "a LoCoMo file")
    return Task("locomo", histories, items, scorer(), ("f1",), (("category",),), 32, SHORT_ANSWER)


def _turns(conversation: dict[str, Any]) -> list[Turn]:
    sessions = sorted(
        (k for k in conversation if re.fullmatch(r"session_\d+", k)), key=lambda k: int(k.partition("_")[2])
    )
    turns: list[Turn] = []
    for session in sessions:
        date = conversation.get(f"{session}_date_time", "")
        said: list[tuple[str, str]] = []
        for line in conversation[session]:
            text = f"{line['speaker']}: {line.get('text', '')}"
            if line.get("blip_caption"):
                text += f" (shares a picture of {line['blip_caption']})"
            if said and said[-1][0] == line["speaker"]:
                said[-1] = (line["speaker"], f"{said[-1][1]}\n{text}")
            else:
                said.append((line["speaker"], text))
        for i in range(0, len(said), 2):  # what one says, and what the other says to it
            opening = f"[{date}]\n" if date and i == 0 else ""
            turns.append(Turn(opening + "\n".join(text for _, text in said[i : i + 2]), HEARD))
    return turns


def scorer() -> Callable[[Item, str], dict[str, float]]:
    """The published protocol: F1 over stemmed words, by category.

    Raises:
        MissingExtraError: snowballstemmer is not installed.
    """
    try:
        import snowballstemmer
    except ImportError:
        raise MissingExtraError("LoCoMo's scoring", "eval") from None
    stem = snowballstemmer.stemmer("porter").stemWords

    def words(text: str) -> list[str]:
        plain = text.lower().replace(",", "").translate(str.maketrans("", "", string.punctuation))
        return list(stem(re.sub(r"\b(a|an|the|and)\b", " ", plain).split()))

    def score(item: Item, reply: str) -> dict[str, float]:
        category = item.labels["category"]
        if category == "adversarial":
            return {"f1": float(says_unknown(reply))}
        answer = item.answers[0]
        if category == "multi-hop":
            parts, said = ([p.strip() for p in text.split(",") if p.strip()] or [""] for text in (answer, reply))
            return {"f1": sum(max(token_f1(s, p, words) for s in said) for p in parts) / len(parts)}
        if category == "open-domain":
            answer = answer.split(";")[0].strip()
        return {"f1": token_f1(reply, answer, words)}

    return score
