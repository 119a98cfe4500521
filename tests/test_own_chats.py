"""Chats of one's own, read from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltamem.episodes.episode import Episode, Question, Turn, load_episodes
from deltamem.errors import DataError


def lines(path: Path, *values: Any) -> Path:
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values))
    return path


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = [message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d")]


def test_chats_are_read_from_json_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"messages": [message("system", "s"), *CHAT]}, "", {"messages": CHAT})
    assert load_episodes(path) == [Episode((Turn("a", "b"),), (Question("c", "d"),))] * 2


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ("{", "not JSON"),
        ({"text": "x"}, "expected"),
        ({"messages": [{"role": "user"}]}, "expected"),
        ({"messages": CHAT[:3]}, "must end with a question and its answer"),
        ({"messages": CHAT[2:]}, "at least two turns"),
        ({"messages": [CHAT[1], CHAT[0], *CHAT[2:]]}, "take turns"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, bad: Any, match: str) -> None:
    path = lines(tmp_path / "x.jsonl", {"messages": CHAT}, bad)
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2: .*{match}"):
        load_episodes(path)
