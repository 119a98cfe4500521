"""Evaluation: what is asked under which condition, what counts as right, and figures with intervals."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import write_batch
from deltamem.episodes.episode import Episode, Turn
from deltamem.episodes.grouped import grouped
from deltamem.episodes.numbers import numbers
from deltamem.episodes.passes import Passes
from deltamem.episodes.sorts import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.evaluation import perplexity as perplexity_module
from deltamem.evaluation.conditions import CONDITIONS, Prompts
from deltamem.evaluation.histories import turn_tokens, windows, write_histories
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.perplexity import perplexity
from deltamem.evaluation.plot import plot_recall
from deltamem.evaluation.predictions import PredictionsFile
from deltamem.evaluation.run import EvalOptions, evaluate
from deltamem.evaluation.scoring import best_f1, exact_match, names, says_unknown, token_f1
from deltamem.evaluation.summary import interval, ratio, summarise
from deltamem.evaluation.tasks import recall
from tests.conftest import Words, make_memory, make_model


@pytest.fixture
def passes(tokenizer: Any) -> Passes:
    return Passes(make_memory(make_model()), ChatFormat.of(tokenizer))


# What counts as right


def test_words_are_compared_as_published() -> None:
    assert exact_match("The Eiffel  Tower!", ["eiffel tower"]) == 1 and exact_match("Eiffel", ["eiffel tower"]) == 0
    assert token_f1("the cat sat", "a cat sat down") == pytest.approx(0.8)
    assert token_f1("", "x") == 0 and token_f1("", "") == 1
    assert best_f1("Rome", ["Paris", "Rome"]) == 1 and best_f1("Rome", []) == 0
    assert names("It is Rex.", "rex") and not names("It is Rexford.", "Rex")


@pytest.mark.parametrize(
    "reply",
    [
        "I don't know. You haven't told me.",
        "I'm sorry, but I do not have any information about your dog.",
        "You never mentioned it.",
        "That is not mentioned in the conversation.",
        "I can't remember that.",
    ],
)
def test_not_knowing_is_recognised(reply: str) -> None:
    assert says_unknown(reply)


@pytest.mark.parametrize("reply", ["Your dog is called Rex.", "Paris.", "You told me that it is Rex."])
def test_an_answer_is_not_taken_for_not_knowing(reply: str) -> None:
    assert not says_unknown(reply)


# Histories


def talk(count: int) -> list[Turn]:
    return [Turn(f"I say {i}.", f"Reply {i}.") for i in range(count)]


def test_a_history_is_cut_into_windows_that_lose_nothing(passes: Passes) -> None:
    form, turns = passes.form, [*talk(9), Turn("long " * 60, "so it is " * 40)]
    cut = list(windows(form, turns, 130))
    assert all(sum(turn_tokens(form, t) for t in part) <= 130 for part in cut) and len(cut) > 3
    for side in (0, 1):
        said = [t[side] for part in cut for t in part]
        assert "".join("".join(said).split()) == "".join("".join(t[side] for t in turns).split())
    assert list(windows(form, talk(2), 10_000)) == [talk(2)]


def test_histories_written_together_are_those_written_alone(passes: Passes) -> None:
    histories = {"short": talk(1), "long": talk(12), "middle": talk(5), "none": []}
    seen: list[tuple[int, int]] = []
    states = write_histories(passes, histories, 200, 3, lambda n, of: seen.append((n, of)))
    assert seen[-1][0] == seen[-1][1]
    for name, turns in histories.items():
        alone = write_histories(passes, {name: turns}, 200, 1)[name]
        torch.testing.assert_close(states[name].tensor, alone.tensor, atol=1e-5, rtol=1e-4)
    assert not states["none"].tensor.any()
    whole = passes.write(write_batch(passes.form, [Episode(tuple(talk(1)), ())])).clone()
    torch.testing.assert_close(states["short"].tensor, whole.tensor, atol=1e-6, rtol=1e-4)


# Conditions


def test_prompts_hold_what_their_condition_says(passes: Passes, tokenizer: Any) -> None:
    turns = [*talk(30), Turn("My parrot is called Zorro.", "Nice."), *talk(3)]
    prompts = Prompts(passes.form, context=600, reply=8, retrieve=2)

    asked = Item("i", "c", "What is my parrot called?", ("Zorro.",))

    def text(condition: Any, item: Item = asked) -> str:
        ids = prompts.ask(condition, item, turns)
        assert len(ids) + len(passes.form.opening) + 8 <= 600
        said: str = tokenizer.decode(ids)
        return said

    for alone in ("frozen", "memory", "shuffled"):
        assert text(alone) == "What is my parrot called?<|im_end|>\n<|im_start|>assistant\n"
    for near in ("retrieval", "memory+retrieval"):
        assert "Zorro" in text(near) and "I say 7" not in text(near)
    for late in ("context", "memory+context"):
        assert "I say 2" in text(late) and "I say 7" not in text(late) and "Zorro" in text(late)
        assert text(late).index("Zorro") < text(late).rindex("I say 2")
    after = replace(asked, earlier=(Turn("Why is the sky blue?", "It is the light."),))
    for condition in CONDITIONS:
        assert "It is the light." not in text(condition)
        assert text(condition, after).endswith(
            "Why is the sky blue?<|im_end|>\n<|im_start|>assistant\nIt is the light.<|im_end|>\n<|im_start|>user\n"
            "What is my parrot called?<|im_end|>\n<|im_start|>assistant\n"
        ), "in the window it comes after the others, whatever the condition"


def test_retrieval_with_nothing_in_common_finds_nothing(passes: Passes) -> None:
    why = Item("i", "c", "Why?", ("So.",))
    bare = Prompts(passes.form, 600, 8, 5).ask("frozen", why, [])
    assert Prompts(passes.form, 600, 8, 5).ask("retrieval", why, talk(3)) == bare
    assert Prompts(passes.form, 600, 8, 5).ask("retrieval", why, []) == bare


def simple_task(count: int = 3) -> Task:
    histories = {f"c{i}": [Turn(f"Fact number {i} is {'xyz'[i]}.", "Ok.")] for i in range(count)}
    items = [
        Item(f"i{i}", f"c{i}", f"What is fact {i}?", ("xyz"[i],), labels={"number": i, "odd": "yn"[i % 2]})
        for i in range(count)
    ]
    return Task("t", histories, items, lambda item, reply: {"said": float(bool(reply))}, ("said",), (("odd",),), 4)


def test_every_condition_reads_the_state_it_should(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    task = simple_task()
    states = write_histories(passes, task.histories, 400, 3)
    asked: list[tuple[int, Any]] = []

    def reply(asks: Sequence[list[int]], state: Any, tokens: int) -> list[str]:
        asked.append((len(asks), None if state is None else state.tensor.clone()))
        return ["yes"] * len(asks)

    monkeypatch.setattr(passes, "reply", reply)
    found = list(evaluate(passes, task, EvalOptions(CONDITIONS, context=400, batch=8)))
    assert [p.condition for p in found] == [c for c in CONDITIONS for _ in range(3)]
    order = [p.item.id for p in found[:3]]
    for condition, (count, tensor) in zip(CONDITIONS, asked, strict=True):
        assert count == 3
        if condition in ("frozen", "context", "retrieval"):
            assert tensor is None
            continue
        for row, name in enumerate(order):
            own = int(name[1])
            whose = (own + 1) % 3 if condition == "shuffled" else own
            torch.testing.assert_close(tensor[:, row], states[f"c{whose}"].tensor[:, 0], atol=1e-5, rtol=1e-4)


def test_what_is_done_is_not_asked_again(passes: Passes) -> None:
    task, options = simple_task(), EvalOptions(("frozen", "memory"), context=400, batch=2)
    whole = [p.to_dict() for p in evaluate(passes, task, options)]
    done = {("frozen", "i0"), ("frozen", "i1"), ("frozen", "i2"), ("memory", "i1")}
    rest = [p.to_dict() for p in evaluate(passes, task, options, done)]
    assert {(p["condition"], p["id"]) for p in rest} == {("memory", "i0"), ("memory", "i2")}
    assert all(p in whole for p in rest)


def test_a_limited_task_keeps_the_conversations_it_needs() -> None:
    task = simple_task().limited(1)
    assert len(task.items) == 1 and len(task.histories) == 2
    assert len(simple_task().limited(2).items) == 2 and simple_task().limited(9).items == simple_task().items


# Figures


def test_intervals_hold_the_mean_and_narrow_with_more_items() -> None:
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 500)
    assert few[0] == many[0] == 0.5 and few[1] < many[1] < 0.5 < many[2] < few[2]
    assert interval([1.0] * 5) == (1.0, 1.0, 1.0)
    assert ratio([1.0, 1.0], [0.0, 0.0]) is None
    found = ratio([0.6] * 20, [0.5] * 20)
    assert found is not None and found == pytest.approx((1.2, 1.2, 1.2))


def test_figures_are_broken_down_by_label() -> None:
    lines = [
        {"condition": c, "id": f"i{i}", "scores": {"m": float(c == "memory" or i == 0)}, "labels": labels}
        for c in ("frozen", "memory")
        for i, labels in enumerate(({"facts": 2}, {"facts": 10}, {}))
    ]
    rows = summarise(lines, ("m",), (("facts",),))
    assert [(r["slice"], r["condition"], r["n"], r["m"]["mean"]) for r in rows] == [
        ({}, "frozen", 3, pytest.approx(1 / 3)),
        ({}, "memory", 3, 1.0),
        ({"facts": 2}, "frozen", 1, 1.0),
        ({"facts": 2}, "memory", 1, 1.0),
        ({"facts": 10}, "frozen", 1, 0.0),
        ({"facts": 10}, "memory", 1, 1.0),
    ]
    assert rows[1]["over_frozen"]["mean"] == pytest.approx(3.0)


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    rows = summarise(
        [
            {"condition": c, "id": f"{n}", "scores": {"m": 0.5}, "labels": labels}
            for c in ("frozen", "memory")
            for n, labels in enumerate(({"facts": 1}, {"facts": 2}, {"kind": "list"}, {"kind": "other"}))
        ],
        ("m",),
        (("facts",), ("kind",)),
    )
    plot_recall(rows, "m", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="can't draw"):
        plot_recall(rows, "m", tmp_path / "x.nonsense")


# Predictions on disk


def test_predictions_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "p" / "x.jsonl"
    line = {"condition": "memory", "id": "a", "scores": {"m": 1.0}, "labels": {}}
    PredictionsFile(path, {"seed": 1}).add(line)
    with path.open("a") as file:
        file.write('{"condition": "memory", "id": "b", "sco')  # killed here
    again = PredictionsFile(path, {"seed": 1})
    assert again.done == {("memory", "a")}
    again.add(line | {"id": "b"})
    assert PredictionsFile(path, {"seed": 1}).done == {("memory", "a"), ("memory", "b")}
    with pytest.raises(DataError, match=r"another run .seed differ"):
        PredictionsFile(path, {"seed": 2})
    foreign = tmp_path / "notes.txt"
    foreign.write_text("my notes\n")
    with pytest.raises(DataError, match="no predictions file"):
        PredictionsFile(foreign, {})
    assert foreign.read_text() == "my notes\n"


# Recall


def test_recall_asks_for_what_it_says() -> None:
    task = recall.recall_task(Words(), questions=8, facts=(1, 2), distances=(0, 50), seed=0)
    by_label: dict[tuple[str, Any], list[Item]] = {}
    for item in task.items:
        ((name, value),) = item.labels.items()
        by_label.setdefault((name, value), []).append(item)
    assert all(len(items) >= 8 for items in by_label.values())
    far, near = (task.histories[by_label["distance", d][0].conversation] for d in (50, 0))
    assert len(far) - len(near) in range(47, 54)
    assert all(not i.value for i in by_label["kind", "never told"])
    assert all(" and " in i.value for i in by_label["kind", "list of two"])
    spellings = [i.answers for i in task.items if "favourite" in i.answers[0]]
    assert spellings and all("favorite" in american for _, american in spellings)
    assert len({i.id for i in task.items}) == len(task.items)
    assert task.histories == recall.recall_task(Words(), 8, (1, 2), (0, 50), seed=0).histories
    untold = recall.recall_task(Words(), questions=8, parts=("never told",))
    assert untold.items == by_label["kind", "never told"] and untold.slices == (("kind",),)
    people = SyntheticPeople(Words())
    seen = {q for r in people.relations for q in r.questions[:-1]}
    heldout = [word for kind in ("name", "word") for word in people.values.single(kind, "heldout")]
    for item in by_label["new values", 1]:
        assert any(q in item.question for q in seen) and item.value in heldout
    expected = {
        split: {v for r in people.relations for v in people.values.likely(r.id, split)}
        for split in ("train", "heldout")
    }
    likely = [i for i in by_label["likely values", 2] if i.value in expected["heldout"]]
    assert len(likely) >= 4 and not any(i.value in expected["train"] for i in likely)
    ways = {r.questions[0] for r in people.unusual["questions"]}
    assert all(item.question in ways for item in by_label["unusual words", "asked"])
    told = [task.histories[i.conversation][0].user for i in by_label["unusual words", "told"]]
    ways = {r.statements[0].partition("{v}")[0] for r in people.unusual["statements"]}
    assert all(any(text.startswith(way) for way in ways) for text in told)
    both = [i for kind in ("alike", "close") for i in by_label["kind", kind]]
    by_conversation = grouped((i.conversation, i) for i in both)
    for pair in by_conversation.values():
        first, second = ({f.id for f in people.families if f.questions[-1] == i.question} for i in pair)
        assert first != second and {sort_of(id) for id in first} == {sort_of(id) for id in second}
        assert pair[0].wrong == (pair[1].value,) and pair[1].wrong == (pair[0].value,)
    for item in (i for kind in ("never told but alike", "never told but close") for i in by_label["kind", kind]):
        (turn,) = task.histories[item.conversation]
        ways = {f.id: re.escape(f.statements[-1]).replace(r"\{v\}", ".+") for f in people.families}
        (told,) = {id for id, way in ways.items() if re.fullmatch(way, turn.user)}
        (asked,) = {f.id for f in people.families if f.questions[-1] == item.question}
        assert not item.value and told != asked and sort_of(told) == sort_of(asked)
        assert item.labels["kind"] == "never told but alike" or {told, asked} in map(set, recall.CLOSE)
    held = {number for splits in numbers().values() for number in splits["heldout"]}
    assert all(item.value in held for item in by_label["kind", "numbers"])
    for item in (i for kind in ("asked before", "asked before but never told") for i in by_label["kind", kind]):
        turns = task.histories[item.conversation]
        asked = Turn(item.question, item.answers[0])
        assert turns[-15:-10] == turns[-10:-5] == turns[-5:] and asked in turns[-5:], "four facts and one more"
        assert bool(item.value) == (item.labels["kind"] == "asked before")
    sentences = [task.histories[item.conversation][0].user for item in by_label["kind", "one sentence"]]
    assert sum(" and " in text and text.count(".") == 1 for text in sentences) >= 4
    only = recall.recall_task(Words(), questions=8, facts=(2,), parts=("facts",))
    assert {tuple(i.labels) for i in only.items} == {("facts",)}


def test_statements_are_said_back_from_what_they_wrote() -> None:
    task = recall.recall_task(Words(), questions=8, parts=("statements",))
    assert task.slices == (("statements",),) and len(task.items) == 8 * len(recall.STATEMENTS)
    for item in task.items:
        (turn,) = task.histories[item.conversation]
        assert turn == (item.question, "") and item.answers[0].startswith("Got it. ")
        said = item.answers[0].removeprefix("Got it. ")
        assert item.value in said and said.count(".") == int(str(item.labels["statements"])[0])
    joined = [i.question for i in task.items if i.labels["statements"] == "2 in one sentence"]
    assert sum(" and " in question and question.count(".") == 1 for question in joined) >= 6


def test_recall_asks_after_ordinary_talk_in_the_window() -> None:
    people = SyntheticPeople(Words())
    task = recall.recall_task(Words(), questions=8, parts=("after ordinary talk", "never told after ordinary talk"))
    by_kind = grouped((item.labels["kind"], item) for item in task.items)
    for kind, told in (("after ordinary talk", True), ("never told after ordinary talk", False)):
        assert len(by_kind[kind]) >= 8 and {bool(item.value) for item in by_kind[kind]} == {told}
        assert {len(item.earlier) for item in by_kind[kind]} == {1, 2, 3}
        assert all(turn in people.answered for item in by_kind[kind] for turn in item.earlier)
    assert {turn.user for turn in people.answered} <= set(people.ordinary["heldout"])


def test_recall_is_right_when_the_value_is_named_and_no_other() -> None:
    item = Item("i", "c", "Dog?", ("Your dog is called Rex.",), value="Rex", wrong=("Tom",))
    assert recall.score(item, "your dog is called Rex") == {"named": 1.0, "exact": 1.0, "f1": 1.0}
    assert recall.score(item, "It may be Tom or Rex.")["named"] == 0
    assert recall.score(item, "Rex!")["exact"] == 0 and recall.score(item, "Rexford")["named"] == 0
    works = Item("i", "c", "Who employs me?", ("You work for Holmes.",), value="Holmes", wrong=("work", "Tom"))
    assert recall.score(works, "You work for Holmes.")["named"] == 1
    assert recall.score(works, "You work for Tom and Holmes.")["named"] == 0
    both = Item("i", "c", "Food?", ("You like rice and beans.",), value="rice and beans")
    assert recall.score(both, "Beans, and also rice.")["named"] == 1 and recall.score(both, "Rice.")["named"] == 0
    answers = (
        "Got it. Your cat is Rex. Your favourite band is Abba.",
        "Got it. Your cat is Rex. Your favorite band is Abba.",
    )
    told = Item("i", "c", "My cat is Rex, ...", answers, value="Rex", labels={"statements": "2 facts"})
    assert recall.score(told, "Got it. Your cat is Rex. Nice!")["named"] == 1
    assert recall.score(told, "Your favorite band is Abba.")["named"] == 1
    assert recall.score(told, "Got it. Your cat is Rex and Abba.")["named"] == 0
    assert recall.score(told, "Got it. Your favourite band is Rex.")["named"] == 0
    assert recall.score(told, answers[1]) == {"named": 1.0, "exact": 1.0, "f1": pytest.approx(0.9, abs=0.05)}
    unknown = Item("i", "c", "Cat?", ("I don't know.",))
    assert recall.score(unknown, "I don't know that.")["exact"] == 1 and recall.score(unknown, "Tom.")["exact"] == 0


# Text


def test_an_empty_state_leaves_text_alone(passes: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity_module, "SyntheticPeople", lambda _: SyntheticPeople(Words()))
    text = tmp_path / "text.txt"
    text.write_text("It was a bright cold day in April. " * 20)
    rows = {r["condition"]: r for r in perplexity(passes, text, window=64, windows=4, batch=2)}
    assert list(rows) == ["frozen", "empty", "full", "unrelated"]
    assert rows["empty"]["over_frozen"]["mean"] == pytest.approx(1.0, abs=1e-6)
    assert rows["frozen"]["perplexity"] > 1 and rows["frozen"]["tokens"] == 4 * 63
    assert rows["full"]["over_frozen"]["mean"] != pytest.approx(1.0, abs=1e-6)
    assert rows["unrelated"]["over_frozen"]["mean"] != pytest.approx(rows["full"]["over_frozen"]["mean"], abs=1e-9)
    text.write_text("Too short.")
    with pytest.raises(DataError, match="too short"):
        perplexity(passes, text)


def test_predictions_are_plain_values(passes: Passes) -> None:
    for prediction in evaluate(passes, simple_task(), EvalOptions(("memory",), context=400)):
        assert json.loads(json.dumps(prediction.to_dict())) == prediction.to_dict()
