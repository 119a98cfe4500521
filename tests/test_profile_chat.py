"""A chat kept in a profile: on disk after every turn, taken back with it, and never in two places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltamem.backbones.load import Backbone, load_backbone
from deltamem.errors import ProfileError
from deltamem.profile_chat import ProfileChat
from deltamem.profiles import ProfileStore, load_profile
from deltamem.session import Sampling, TextChunk, TurnFinished
from tests.trust.soaking import soak


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> Backbone:
    return load_backbone(str(tiny_backbone), "cpu")


def open_chat(
    backbone: Backbone, adapter: Path, folder: Path, profile: str | None = "work", **options: Any
) -> ProfileChat:
    store = ProfileStore(folder)
    sampling = Sampling(temperature=0, max_tokens=6)
    return ProfileChat(backbone, str(adapter), profile, store=store, context=400, sampling=sampling, **options)


def say(chat: ProfileChat, text: str) -> TurnFinished:
    last = list(chat.send(text))[-1]
    assert isinstance(last, TurnFinished)
    return last


def test_the_profile_is_on_disk_before_the_turn_is_over(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        for i in range(3):
            for event in chat.send(f"turn {i}"):
                if isinstance(event, TurnFinished):
                    saved = load_profile(tmp_path / "work.safetensors")
                    assert saved.info.turns == i + 1 and chat.session.state is not None
                    assert saved.state.equal(chat.session.state)
        assert saved.info.tokens == sum(6 + 6 for _ in range(3))
    with open_chat(backbone, tiny_adapter, tmp_path) as again:
        assert again.turns == 3 and again.session.state is not None and again.session.state.equal(saved.state)


def test_undo_and_redo_reach_the_file(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "work.safetensors"
    saved = []
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        for text in ("one", "two", "three"):
            say(chat, text)
            saved.append(load_profile(path))

        def is_at(turn: int) -> None:
            found = load_profile(path)
            assert chat.turns == found.info.turns == turn and chat.session.state is not None
            assert chat.session.state.equal(found.state)
            # What /inspect shows is of the turn it went back to, not of the one taken back.
            assert chat.session.writes is None and chat.session.state_before is not None
            assert chat.session.state_before.equal(found.before)
            if turn:
                assert found.state.equal(saved[turn - 1].state) and found.info.tokens == saved[turn - 1].info.tokens
            else:
                assert not found.state.tensor.any()

        window = chat.session.window_tokens
        assert chat.undo() == 1 and len(chat.session.form.opening) < chat.session.window_tokens < window
        is_at(2)
        assert chat.undo(5) == 2 and chat.undo() == 0
        is_at(0)
        assert chat.redo() and chat.redo()
        is_at(2)
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:  # another process
        is_at(2)
        assert chat.redo() and not chat.redo()
        is_at(3)
        chat.forget()
        assert chat.turns == 0 and chat.undo() == 1
        is_at(3)


def test_a_turn_that_only_read_is_taken_back_from_the_window_alone(
    backbone: Backbone, tiny_adapter: Path, tmp_path: Path
) -> None:
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        say(chat, "one")
        data = (tmp_path / "work.safetensors").read_bytes()
        chat.session.mode = "read"
        say(chat, "two")
        assert chat.undo() == 1 and chat.turns == 1
        assert (tmp_path / "work.safetensors").read_bytes() == data
        assert chat.undo() == 1 and chat.turns == 0


def test_a_history_that_cannot_be_used_is_put_aside(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        say(chat, "one")
    (tmp_path / "work.history").write_text("not a history")
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        say(chat, "two")
        assert chat.turns == 2 and chat.undo() == 1 and chat.turns == 1
    (aside,) = tmp_path.glob("work.history.damaged-*")
    assert aside.read_text() == "not a history"


def test_a_reply_that_is_closed_is_kept(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        events = chat.send("hello")
        for event in events:
            if isinstance(event, TextChunk):
                break
        events.close()  # type: ignore[attr-defined]
        assert load_profile(tmp_path / "work.safetensors").info.turns == 1


def test_read_only_and_frozen_turns_are_not_saved(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        say(chat, "one")
        data = (tmp_path / "work.safetensors").read_bytes()
        chat.session.mode = "off"
        say(chat, "two")
        chat.session.mode = "read"
        say(chat, "three")
    with open_chat(backbone, tiny_adapter, tmp_path, read_only=True) as chat:
        say(chat, "four")
    assert (tmp_path / "work.safetensors").read_bytes() == data


def test_a_held_profile_is_refused_and_read_only_is_offered(
    backbone: Backbone, tiny_adapter: Path, tmp_path: Path
) -> None:
    store = ProfileStore(tmp_path)
    with store.lock("work"), pytest.raises(ProfileError, match="--read-only"):
        open_chat(backbone, tiny_adapter, tmp_path)
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:  # a failed opening leaves the model free
        say(chat, "one")


def test_switching_profiles_and_forgetting(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    with open_chat(backbone, tiny_adapter, tmp_path) as chat:
        say(chat, "one")
        chat.open_profile("other")
        assert chat.turns == 0
        say(chat, "two")
        with pytest.raises(ProfileError, match="no profile name"):
            chat.open_profile("../x")
        assert chat.profile_name == "other" and chat.turns == 1
        chat.open_profile("work")
        assert chat.turns == 1
        chat.forget()
        emptied = load_profile(tmp_path / "work.safetensors")
        assert emptied.info.turns == 0 and (emptied.state.tensor == 0).all()
        assert load_profile(tmp_path / "other.safetensors").info.turns == 1
        assert chat.save("copy") == tmp_path / "copy.safetensors"
        with pytest.raises(ProfileError, match="'copy' already"):
            chat.save("copy")


def test_random_commands_leave_what_a_plain_list_says(backbone: Backbone, tiny_adapter: Path, tmp_path: Path) -> None:
    used = soak(backbone, str(tiny_adapter), tmp_path, turns=60)
    assert {"say", "undo", "redo", "switch", "fork", "lock", "clear"} == used.keys()
