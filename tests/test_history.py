"""The past of a profile: kept through crashes, gone back to, branched, and let go of when asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem.errors import ProfileError
from deltamem.profiles import Profile, ProfileInfo, ProfileStore, load_profile, save_profile
from deltamem.profiles.file import empty_profile
from deltamem.profiles.history import History, at
from deltamem.profiles.versions import branch, difference, past, prune, rewind, tag, upgrade
from deltamem.state import MemoryState

CONFIG = {"rank": 4, "num_state_heads": 1}


def begun(adapter: str = "a" * 16) -> Profile:
    return empty_profile(ProfileInfo("b", "f" * 16, "adapter", adapter, CONFIG, (0, 1)))


def said(profile: Profile, value: float) -> Profile:
    state = MemoryState(torch.full((2, 1, 1, 4, 4), value), (0, 1))
    return profile.after_turn(state, profile.state, 3)


def talked(path: Path, turns: int, limit: int = 200) -> tuple[Profile, History]:
    """A profile on disk after some turns; turn n left n in every number."""
    profile = begun()
    history = History(History.beside(path), profile, limit)
    profile = history.append(profile, "begin")
    for turn in range(1, turns + 1):
        profile = history.append(said(profile, float(turn)), change=1 / turn)
    save_profile(path, profile)
    return profile, history


def test_every_state_can_be_gone_back_to(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    profile, _ = talked(path, 5)
    history = History(History.beside(path), load_profile(path))
    line = history.line(load_profile(path).info.entry)
    assert [e.turns for e in line] == [0, 1, 2, 3, 4, 5] and [e.kind for e in line] == ["begin"] + ["turn"] * 5
    for entry in line:
        back = at(profile, history, entry)
        assert (back.state.tensor == entry.turns).all() and back.info.turns == entry.turns
        assert (back.before.tensor == max(0, entry.turns - 1)).all() and back.info.tokens == 3 * entry.turns
    assert History.beside(path).stat().st_mode & 0o777 == 0o600


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_crash_at_any_byte_loses_one_record_at_most(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("h") / "me.safetensors"
    profile, history = talked(path, 4)
    file = History.beside(path)
    whole = file.read_bytes()
    sizes = sorted(history._places.values())
    cut = data.draw(st.integers(sizes[0] + 128, len(whole)))
    file.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\0" * 7, b"dmh1\xff\xff\xff\x7f"])))
    again = History(file, profile)
    alive = sum(place + 128 <= cut for place in sizes)
    assert len(again.entries) == alive
    after = again.append(said(profile, 9.0))
    reread = History(file, profile)
    assert len(reread.entries) == alive + 1 and (reread.matrices(after.info.entry) == 9.0).all()


def test_a_damaged_record_ends_the_history_before_it(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    profile, history = talked(path, 4)
    file = History.beside(path)
    data = bytearray(file.read_bytes())
    data[history._places[4] + 5] ^= 1
    file.write_bytes(data)
    assert len(History(file, profile).entries) == 3


def test_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    talked(path, 1)
    with pytest.raises(ProfileError, match="another adapter"):
        History(History.beside(path), begun("c" * 16))
    foreign = tmp_path / "x.history"
    foreign.write_text("my notes")
    with pytest.raises(ProfileError, match="no history"):
        History(foreign, begun())
    assert foreign.read_text() == "my notes"


def test_the_past_is_bounded_and_what_has_a_label_stays(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    profile, history = talked(path, 3, limit=10)
    history.label(profile.info.entry, "kept")
    for turn in range(4, 60):
        profile = history.append(said(profile, float(turn)))
        assert len(history.entries) <= 22
    reread = History(history.path, profile, limit=10)
    assert reread.entries == history.entries and history.find("kept", profile.info.entry).turns == 3
    line = reread.line(profile.info.entry)
    assert line[-1].turns == 59 and line[0].turns == 3, "parents skip what was let go"
    assert history.path.stat().st_size < 30 * 400


def store_with(tmp_path: Path, turns: int = 4) -> ProfileStore:
    store = ProfileStore(tmp_path)
    talked(store.path("work"), turns)
    return store


def value(store: ProfileStore, name: str) -> float:
    return float(load_profile(store.path(name)).state.tensor.flatten()[0])


def test_rewind_by_turn_and_by_label_loses_nothing(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    tag(store, "work", "before-move")
    assert rewind(store, "work", "2").turns == 2 and value(store, "work") == 2
    assert rewind(store, "work", "before-move").turns == 4 and value(store, "work") == 4
    rewind(store, "work", "1")
    with pytest.raises(ProfileError, match="no turn and no label '3'"):
        rewind(store, "work", "3")  # it lies ahead, on the line that was left
    with pytest.raises(ProfileError, match="label"):
        tag(store, "work", "12")


def test_a_label_moves(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    tag(store, "work", "here")
    rewind(store, "work", "2")
    tag(store, "work", "here")
    _, history = past(store, "work")
    assert [e.turns for e in history.entries.values() if e.label] == [2]


def test_a_branch_goes_its_own_way(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    branch(store, "work", "trip", "2")
    assert value(store, "trip") == 2 and value(store, "work") == 4
    rewind(store, "trip", "1")
    assert value(store, "work") == 4
    with pytest.raises(ProfileError, match="already"):
        branch(store, "work", "trip")
    with pytest.raises(ProfileError, match="no turn"):
        branch(store, "work", "other", "77")
    assert not store.exists("other")
    whole, heads = difference(store, "work", "trip")
    assert whole == pytest.approx(3.0) and len(heads) == 2 and heads[0].change == pytest.approx(3.0)


def test_another_adapter_takes_a_profile_with_its_past(tmp_path: Path) -> None:
    store, new = store_with(tmp_path), "b" * 16
    branch(store, "work", "old")
    with pytest.raises(ProfileError, match="another memory"):
        upgrade(store, "work", "newer", new, {**CONFIG, "rank": 8})
    assert load_profile(store.existing("work")).info.adapter == "adapter"
    upgrade(store, "work", "newer", new, CONFIG)
    profile, history = past(store, "work")
    assert (profile.info.adapter, profile.info.adapter_fingerprint) == ("newer", new)
    assert value(store, "work") == 4 and len(history.entries) == 5
    profile.check_fits("b", "f" * 16, "newer", new)
    with pytest.raises(ProfileError, match="is another"):
        profile.check_fits("b", "f" * 16, "adapter", "a" * 16)
    rewind(store, "work", "2")
    assert value(store, "work") == 2 and load_profile(store.existing("work")).info.adapter == "newer"
    prune(store, "work", 2)
    profile, history = past(store, "work")
    history.append(said(profile, 7.0))
    assert len(past(store, "work")[1].entries) == 4, "the file is still its own"
    assert difference(store, "work", "old")[0] > 0, "their numbers mean the same"
    shared = {**CONFIG, "learned_erase": True, "own_share": 0.5, "reply_floor": 0.4}
    upgrade(store, "work", "newest", "c" * 16, shared)
    info = load_profile(store.existing("work")).info
    assert info.adapters == {"a" * 16, new, "c" * 16} and info.adapter_config == shared, "keys are all but the same"
    save_profile(store.path("other"), begun("d" * 16))
    with pytest.raises(ProfileError, match="different things"):
        difference(store, "work", "other")


def test_pruning_and_moving(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    tag(store, "work", "end")
    rewind(store, "work", "3")
    assert prune(store, "work") == 3
    _, history = past(store, "work")
    assert sorted(e.turns for e in history.entries.values()) == [3, 4] and value(store, "work") == 3
    store.rename("work", "office")
    assert past(store, "office")[1].entries == history.entries and not History.beside(store.path("work")).exists()
    store.delete("office")
    assert not list(tmp_path.glob("*.history"))


def test_a_profile_from_before_there_was_a_history_opens(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "old.safetensors"
    save_profile(path, said(begun(), 2.0))
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in ("state", "state_before")}
    save_file(tensors, path, metadata={k: v for k, v in metadata.items() if k != "entry"})
    profile = load_profile(path)
    assert profile.info.entry == 0 and profile.info.turns == 1
    store = ProfileStore(tmp_path)
    assert tag(store, "old", "start").kind == "begin"
    assert replace(load_profile(path).info, entry=0, updated="") == replace(profile.info, updated="")


def test_a_clock_that_goes_back_mixes_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "me.safetensors"
    profile, history = talked(path, 3)
    monkeypatch.setattr("deltamem.profiles.history.now", lambda: "1999-01-01T00:00:00Z")
    profile = history.append(said(profile, 4.0))
    save_profile(path, profile)
    again = load_profile(path)
    line = History(History.beside(path), again).line(again.info.entry)
    assert [e.turns for e in line] == [0, 1, 2, 3, 4] and line[-1].time < line[0].time


def test_a_lost_lock_file_is_made_again(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    talked(store.path("me"), 2)
    with store.lock("me"):
        pass
    (tmp_path / ".me.safetensors.lock").unlink(missing_ok=True)
    with store.lock("me"):
        assert load_profile(store.path("me")).info.turns == 2
