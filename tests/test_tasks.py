"""Published tasks from their files, and what their protocols count as right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltamem.episodes.episode import Turn
from deltamem.errors import DataError
from deltamem.evaluation.tasks.hotpotqa import hotpotqa_task
from deltamem.evaluation.tasks.locomo import locomo_task
from deltamem.evaluation.tasks.memoryagentbench import memoryagentbench_task
from deltamem.evaluation.tasks.own import own_task
from deltamem.evaluation.tasks.squad import HEARD, squad_task

SQUAD = {
    "data": [
        {
            "title": "Dogs",
            "paragraphs": [
                {
                    "context": "Rex is a dog.",
                    "qas": [
                        {"id": "a", "question": "Who?", "answers": [{"text": "Rex"}, {"text": "Rex the dog"}]},
                        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ]
}
HOTPOT = [
    {
        "_id": "q1",
        "question": "Which?",
        "answer": "yes",
        "type": "comparison",
        "context": [["Rex", ["Rex is a dog.", " He barks."]], ["Tom", ["Tom is a cat."]]],
    }
]
LOCOMO = [
    {
        "sample_id": "s1",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_2_date_time": "2 May",
            "session_2": [{"speaker": "Bob", "text": "Hello again"}],
            "session_1_date_time": "1 May",
            "session_1": [
                {"speaker": "Ann", "text": "Hi"},
                {"speaker": "Ann", "text": "Look", "blip_caption": "a dog"},
                {"speaker": "Bob", "text": "Nice"},
            ],
        },
        "qa": [
            {"question": "What pets?", "answer": "dogs, a cat", "category": 1},
            {"question": "Why?", "answer": "running; swimming", "category": 3},
            {"question": "When?", "answer": 2023, "category": 2},
            {"question": "Where?", "adversarial_answer": "Rome", "category": 5},
        ],
    }
]


def file(folder: Path, data: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return path


def test_squad(tmp_path: Path) -> None:
    task = squad_task(file(tmp_path, SQUAD))
    known, unknown = task.items
    assert task.histories[known.conversation][0].user == "Rex is a dog."
    assert task.score(known, "rex.") == {"f1": 1.0, "exact": 1.0}
    assert task.score(unknown, "It is not mentioned.")["f1"] == 1 and task.score(unknown, "Rex")["f1"] == 0


@pytest.mark.parametrize("hub", [False, True])
def test_hotpotqa(tmp_path: Path, hub: bool) -> None:
    data = HOTPOT
    if hub:
        context = {"title": ["Rex", "Tom"], "sentences": [["Rex is a dog.", " He barks."], ["Tom is a cat."]]}
        data = [{**HOTPOT[0], "context": context}]
    task = hotpotqa_task(file(tmp_path, data))
    assert [t.user for t in task.histories["q1"]] == ["Rex: Rex is a dog. He barks.", "Tom: Tom is a cat."]
    assert task.score(task.items[0], "Yes!")["exact"] == 1


def test_locomo(tmp_path: Path) -> None:
    task = locomo_task(file(tmp_path, LOCOMO))
    assert task.histories["s1"] == [
        Turn("[1 May]\nAnn: Hi\nAnn: Look (shares a picture of a dog)\nBob: Nice", HEARD),
        Turn("[2 May]\nBob: Hello again", HEARD),
    ]
    several, broad, when, never = task.items
    assert task.score(several, "a dog, cats")["f1"] == 1, "stemmed, each part by its best match"
    assert task.score(several, "a dog")["f1"] == 0.5
    assert task.score(broad, "run")["f1"] == 1, "only what stands before the semicolon"
    assert task.score(when, "in 2023")["f1"] == pytest.approx(2 / 3)
    assert task.score(never, "That was not mentioned.")["f1"] == 1 and task.score(never, "Rome")["f1"] == 0
    assert never.labels == {"category": "adversarial"}


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_memoryagentbench(tmp_path: Path, ending: str) -> None:
    context = "The first sentence is here. " * 200
    row = {"context": context, "questions": ["Who?", "Why?"], "answers": [["Rex", "the dog"], ["fun"]],
           "metadata": {"source": "ruler"}}  # fmt: skip
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row]) if ending == "json" else json.dumps(row) + "\n")
    for where in (path, tmp_path):
        task = memoryagentbench_task(where)
        (said,) = task.histories.values()
        assert len(said) > 2 and " ".join(t.user for t in said).split() == context.split()
        assert task.score(task.items[0], "It was the dog!") == {
            "contains": 1.0,
            "exact": 0.0,
            "f1": pytest.approx(0.5),
        }
        assert task.items[1].labels == {"source": "ruler"}


def test_own_chats(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    said = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    path.write_text(json.dumps({"messages": said}))
    task = own_task(path)
    assert task.histories == {"0": [Turn("a", "b")]} and task.items[0].answers == ("d",)


@pytest.mark.parametrize("make", [squad_task, hotpotqa_task, locomo_task, memoryagentbench_task])
@pytest.mark.parametrize("content", ["not json", "[1, 2]", '[{"a": 1}]', "[]"])
def test_other_files_are_refused(tmp_path: Path, make: Any, content: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"data\.json"):
        make(path)
