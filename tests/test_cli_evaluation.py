"""`deltamem eval` and `deltamem train-adapter` as real processes, on a tiny backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import Runner


@pytest.fixture
def run(tmp_path: Path, tiny_backbone: Path, tiny_adapter: Path) -> Runner:
    return Runner(tmp_path / "home", tiny_backbone, tiny_adapter)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    with path.open("w") as file:
        for word in ("Rex", "Tom", "Ann"):
            said = (("user", f"It is {word}."), ("assistant", "Ok."), ("user", "Who is it?"), ("assistant", word))
            file.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}) + "\n")
    return path


def test_questions_are_asked_under_every_condition_and_can_be_gone_on_with(
    run: Runner, chats: Path, tmp_path: Path
) -> None:
    kept, picture = tmp_path / "replies.jsonl", tmp_path / "figures.png"
    words = ["eval", "jsonl", str(chats), *run.model, "--context", "512", "--predictions", str(kept)]
    some = json.loads(run(*words, "--conditions", "frozen,memory", "--json").stdout)
    assert [(row["condition"], row["n"]) for row in some["rows"]] == [("frozen", 3), ("memory", 3)]
    assert some["settings"]["adapter_fingerprint"] and some["settings"]["context"] == 512
    done = run(*words, "--plot", str(picture))
    assert "6 of 21 answers" in done.stderr and "memory+retrieval" in done.stdout and "(" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(lines) == 1 + 21 and {"reply", "scores", "question"} <= lines[1].keys()
    assert "another run" in run.error(*words, "--seed", "5")
    assert "another run" in run.error(*words, "--replies", "own")


def test_the_histories_can_have_the_models_own_replies(run: Runner, chats: Path, tmp_path: Path) -> None:
    words = ["eval", "jsonl", str(chats), *run.model, "--context", "512", "--conditions", "memory", "--json"]
    found = json.loads(run(*words, "--replies", "own").stdout)
    assert found["settings"]["replies"] == "own" and [row["n"] for row in found["rows"]] == [3]
    assert "replies" not in json.loads(run(*words).stdout)["settings"]
    kept = ("--replies", "own", "--predictions", str(tmp_path / "replies.jsonl"))
    first, again = run(*words, *kept), run(*words, *kept)
    assert "replying" in first.stderr
    assert again.stdout == first.stdout and "replying" not in again.stderr, "nothing is left to be asked"


def test_text_is_measured(run: Runner, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short")
    assert "too short" in run.error("eval", "perplexity", str(text), *run.model)


def test_what_is_wrong_with_an_evaluation_is_said_in_one_line(run: Runner, chats: Path, tmp_path: Path) -> None:
    assert "takes the path of a file" in run.error("eval", "squad", *run.model)
    assert "takes no file" in run.error("eval", "recall", str(chats), *run.model)
    assert "no condition is called 'x'" in run.error("eval", "jsonl", str(chats), "--conditions", "x", *run.model)
    assert "does not look like" in run.error("eval", "locomo", str(chats), *run.model)
    assert "there is no" in run.error("eval", "squad", str(tmp_path / "none.json"), *run.model)
    assert "too few words" in run.error("eval", "recall", *run.model)


def test_an_adapter_is_trained_and_used(run: Runner, chats: Path, tmp_path: Path) -> None:
    assert "too few words" in run.error(
        "train-adapter", "-o", str(tmp_path / "a"), *run.model[:2], "--data", str(chats)
    )
    assert "no preset 'x'" in run.error("train-adapter", "-o", str(tmp_path / "a"), "--preset", "x", *run.model[:2])
    nothing = ("--steps", "0", "--read-steps", "0")
    assert "nothing to train" in run.error("train-adapter", "-o", str(tmp_path / "a"), *nothing, *run.model[:2])
    assert "--layers takes" in run.error("train-adapter", "-o", str(tmp_path / "a"), "--layers", "x", *run.model[:2])


def test_what_memory_costs_is_measured(run: Runner, tmp_path: Path) -> None:
    words = ["bench", *run.model, "--lengths", "16,32", "--decode", "2", "--repeats", "2"]
    found = json.loads(run(*words, "--json", "--plot", str(tmp_path / "x.png")).stdout)
    assert [row["tokens"] for row in found["rows"]] == [16, 32] and found["settings"]["repeats"] == 2
    for row in found["rows"]:
        assert all(row[n]["frozen"] > 0 and row[n]["memory"] > 0 and row[n]["ratio"] > 0 for n in ("prompt", "decode"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "a token" in run(*words).stdout
    assert "takes numbers" in run.error(*words[:-6], "--lengths", "many")
    assert "takes 4096 tokens" in run.error(*words[:-6], "--lengths", "5000")
