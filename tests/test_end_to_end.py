"""The product, whole: the real backbone and the adapter that ships, in processes that share nothing but a profile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deltamem.backbones.catalog import CATALOG
from deltamem.evaluation.scoring import says_unknown
from deltamem.profiles import ProfileStore, load_profile, save_profile

pytestmark = pytest.mark.backbone

FACTS = ("My dog is called Everest.", "I live in Lisbon.", "I play the violin.")


def deltamem(home: Path, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "deltamem_cli", *words],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "DELTAMEM_HOME": str(home)},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(home: Path, profile: str, *questions: str) -> list[str]:
    """Each question in a process of its own, so that nothing but the profile links them to what was told."""
    options = ("--backbone", "smollm2-135m", "--temperature", "0", "--max-tokens", "24")
    extra = ("--read-only",) if (home / "profiles" / f"{profile}.safetensors").exists() else ()
    return [deltamem(home, "chat", question, "--profile", profile, *extra, *options).strip() for question in questions]


def test_a_fact_told_yesterday_is_known_today(tmp_path: Path) -> None:
    told = ("--backbone", "smollm2-135m", "--temperature", "0", "--max-tokens", "24", "--json")
    turn = json.loads(deltamem(tmp_path, "chat", FACTS[0], "--profile", "me", *told))
    assert turn["written_tokens"] > 5
    (answer,) = ask(tmp_path, "me", "What is my dog called?")
    (without,) = ask(tmp_path, "nobody", "What is my dog called?")
    assert "Everest" in answer
    assert "Everest" not in without and says_unknown(without)


def test_ordinary_questions_are_still_answered(tmp_path: Path) -> None:
    deltamem(tmp_path, "remember", "-", "--profile", "me", "--backbone", "smollm2-135m", stdin=" ".join(FACTS))
    (answer,) = ask(tmp_path, "me", "What is the capital of France?")
    options = ("--backbone", "smollm2-135m", "--temperature", "0", "--max-tokens", "24", "--memory", "off")
    frozen = deltamem(tmp_path, "chat", "What is the capital of France?", "--profile", "other", *options)
    assert "Paris" in answer and answer == frozen.strip()


def test_a_profile_keeps_the_adapter_it_was_made_with(tmp_path: Path) -> None:
    options = ("--backbone", "smollm2-135m", "--profile", "old", "--temperature", "0", "--max-tokens", "8")
    deltamem(tmp_path, "chat", FACTS[0], *options, "--adapter", "smollm2-135m-v1")
    deltamem(tmp_path, "chat", FACTS[1], *options)
    shown = json.loads(deltamem(tmp_path, "profiles", "show", "old", "--json"))
    assert shown["adapter"] == "smollm2-135m-v1" and shown["turns"] == 2
    assert shown["newer_adapter"] not in (None, "smollm2-135m-v1")


def test_a_profile_is_read_by_the_newer_adapter_when_told_to(tmp_path: Path) -> None:
    options = ("--backbone", "smollm2-135m", "--profile", "old", "--temperature", "0", "--max-tokens", "8")
    (own,) = CATALOG["smollm2-135m"].reads[:1]
    deltamem(tmp_path, "chat", FACTS[0], *options, "--adapter", own)
    before = json.loads(deltamem(tmp_path, "inspect-state", "old", "--json"))
    deltamem(tmp_path, "profiles", "upgrade", "old")
    shown = json.loads(deltamem(tmp_path, "profiles", "show", "old", "--json"))
    assert shown["adapter"] == CATALOG["smollm2-135m"].adapter and shown["newer_adapter"] is None
    after = json.loads(deltamem(tmp_path, "inspect-state", "old", "--json"))
    assert {k: v for k, v in after.items() if not k.startswith("adapter")} == {
        k: v for k, v in before.items() if not k.startswith("adapter")
    }
    (answer,) = ask(tmp_path, "old", "What is my dog called?")
    assert "Everest" in answer
    deltamem(tmp_path, "chat", "Hello.", *options)
    log = json.loads(deltamem(tmp_path, "profiles", "log", "old", "--json"))
    assert [entry["turns"] for entry in log["entries"]] == [0, 1, 2], "the past is still its own"
    deltamem(tmp_path, "chat", "Hello.", "--profile", "oldest", *options[:2], "--adapter", "smollm2-135m-v1")
    store = ProfileStore(tmp_path / "profiles")
    profile = load_profile(store.path("old"))
    save_profile(store.path("mine"), replace(profile, info=replace(profile.info, adapter=own)))
    for name, why in (
        ("old", "there is no newer one"),
        ("oldest", "reads another memory"),
        ("mine", f"another {own} than the one there is here"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "deltamem_cli", "profiles", "upgrade", name],
            capture_output=True, text=True, env={**os.environ, "DELTAMEM_HOME": str(tmp_path)},
        )  # fmt: skip
        assert run.returncode == 1 and why in " ".join(run.stderr.split())


def steps(output: Path) -> list[int]:
    metrics = output / "metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def test_an_adapter_is_trained_stopped_resumed_and_chatted_with(tmp_path: Path) -> None:
    """A few steps are no training; what counts is that the command runs whole and leaves what it says."""
    output = tmp_path / "adapter"
    words = ("train-adapter", "--backbone", "smollm2-135m", "--output", str(output), "--preset", "published",
             "--batch", "2", "--eval-questions", "1")  # fmt: skip
    first = [sys.executable, "-m", "deltamem_cli", *words, "--steps", "500", "--rank", "4", "--layers", "10-12"]
    run = subprocess.Popen(first, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not steps(output):
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=300)
    done = len(steps(output))
    assert run.returncode == 130 and f"Stopped after step {done}" in " ".join(said.split()), said
    figures = deltamem(tmp_path, *words, "--steps", str(done + 1), "--resume")  # rank and layers are the run's
    assert "value named" in figures and steps(output) == list(range(1, done + 2))
    card = (output / "README.md").read_text()
    assert f"{done + 1} steps" in card and "--preset published" in card and (output / "curves.png").is_file()
    options = ("--backbone", "smollm2-135m", "--adapter", str(output), "--profile", "me", "--max-tokens", "4")
    turn = json.loads(deltamem(tmp_path, "chat", "Hello.", "--json", *options))
    assert turn["written_tokens"] > 0


def test_reading_alone_is_refused_where_it_trains_nothing(tmp_path: Path) -> None:
    words = ("train-adapter", "--backbone", "smollm2-135m", "--preset", "deltamem", "--steps", "0", "-o",
             str(tmp_path / "adapter"), "--read-steps", "5")  # fmt: skip
    run = subprocess.run([sys.executable, "-m", "deltamem_cli", *words], capture_output=True, text=True)
    assert run.returncode == 1 and "--fit-erase are for corrections to the last layer" in run.stderr
    assert not (tmp_path / "adapter").exists()
