"""A profile survives what it should, and refuses what it should."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from deltamem import DeltaMemConfig, MemoryState
from deltamem.errors import ProfileError, StateError
from deltamem.profiles import Profile, ProfileInfo, ProfileStore, load_profile, save_profile
from deltamem.profiles.file import empty_profile
from tests.trust.crashing import crash_saves


def make_profile(fill: float = 1.0, **info: Any) -> Profile:
    values: dict[str, Any] = {
        "backbone": "tiny",
        "backbone_fingerprint": "b" * 16,
        "adapter": "one",
        "adapter_fingerprint": "a" * 16,
        "adapter_config": DeltaMemConfig().to_dict(),
        "layers": (0, 1),
    }
    state = MemoryState(torch.full((2, 1, 1, 8, 8), fill), (0, 1))
    return Profile.of(ProfileInfo(**values | info), state, MemoryState(torch.zeros(2, 1, 1, 8, 8), (0, 1)))


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "profiles")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.safetensors"


def test_round_trip(path: Path) -> None:
    profile = make_profile(turns=3, tokens=70, title="für mich")
    save_profile(path, profile)
    again = load_profile(path)
    assert again.info == profile.info
    assert again.state.equal(profile.state) and again.before.equal(profile.before)


def test_an_empty_profile_is_saved(path: Path) -> None:
    empty = empty_profile(make_profile().info)
    save_profile(path, empty)
    assert load_profile(path).state.equal(empty.state)


def test_the_file_opens_with_safetensors_alone_and_says_what_it_is(path: Path) -> None:
    save_profile(path, make_profile())
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"state", "state_before"}
        assert file.get_tensor("state").shape == (2, 1, 8, 8)
        promised = (
            "format version backbone backbone_fingerprint adapter_fingerprint adapter_config turns tokens created"
        )
        assert {*promised.split(), "updated", "title"} <= set(file.metadata())


def test_files_and_folders_are_private_whatever_the_umask(store: ProfileStore) -> None:
    before = os.umask(0)
    try:
        with store.lock("work"):
            save_profile(store.path("work"), make_profile())
            files = [p for p in store.folder.iterdir() if not p.name.endswith(".lock")]
            assert {oct(p.stat().st_mode & 0o777) for p in files} == {"0o600"}
        assert oct(store.folder.stat().st_mode & 0o777) == "0o700"
    finally:
        os.umask(before)


def test_a_state_that_is_not_finite_is_never_saved(path: Path) -> None:
    save_profile(path, make_profile())
    before = path.read_bytes()
    with pytest.raises(StateError, match="not saved"):
        save_profile(path, make_profile(float("inf")))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".hidden", "-p", "a b", "x\0y", "ü", "con", "a" * 101, "..", "a\n"]
)
def test_names_that_leave_the_folder_are_refused(store: ProfileStore, name: str) -> None:
    with pytest.raises(ProfileError, match="no profile name"):
        store.path(name)


def test_a_path_works_where_a_name_does(store: ProfileStore, path: Path) -> None:
    assert store.path(str(path)) == path
    assert store.path("work") == store.folder / "work.safetensors"


def refused(path: Path, match: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ProfileError, match=match) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_damaged_and_foreign_files_are_refused_and_left(path: Path) -> None:
    path.write_bytes(b"")
    refused(path, "damaged or no profile")
    path.write_bytes(b"not a profile at all, and longer than a header")
    refused(path, "damaged or no profile")
    save_file({"state": torch.zeros(2)}, path)
    refused(path, "not a deltamem profile")
    save_profile(path, make_profile())
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    refused(path, "damaged or no profile")


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    save_profile(path, make_profile())
    with safe_open(path, framework="pt") as file:
        header = file.metadata() | metadata
        own = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    save_file(own if tensors is None else tensors, path, metadata={k: v for k, v in header.items() if v != "gone"})


def test_descriptions_that_are_wrong_are_refused(path: Path) -> None:
    rewrite(path, version="99")
    refused(path, "format version '99'.*update")
    rewrite(path, turns="many")
    refused(path, "incomplete or damaged")
    rewrite(path, turns="-1")
    refused(path, "incomplete or damaged")
    rewrite(path, adapter_config="[]")
    refused(path, "incomplete or damaged")
    rewrite(path, updated="gone")
    refused(path, "incomplete or damaged")
    rewrite(path, layers="[0, 1, 2]")
    refused(path, "state is not the float32 tensor")
    good = torch.zeros(2, 1, 8, 8)
    rewrite(path, {"state": good.half(), "state_before": good})
    refused(path, "state is not the float32 tensor")
    rewrite(path, {"state": good / 0, "state_before": good})
    refused(path, "NaN or infinite")


def test_another_backbone_or_adapter_is_refused_with_both_names() -> None:
    profile = make_profile()
    profile.check_fits("tiny", "b" * 16, "one", "a" * 16)
    with pytest.raises(ProfileError, match=r"backbone tiny, and large"):
        profile.check_fits("large", "c" * 16, "one", "a" * 16)
    with pytest.raises(ProfileError, match=r"adapter one .*, and two"):
        profile.check_fits("tiny", "b" * 16, "two", "c" * 16)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gets_past_the_loader(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut or added anywhere: a clean error, or a profile with finite numbers."""
    path = tmp_path / "fuzz.safetensors"
    save_profile(path, make_profile())
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 40))]
            case _:
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=40))
        if not raw:
            break
    path.write_bytes(bytes(raw))
    with contextlib.suppress(ProfileError):
        assert load_profile(path).state.is_finite()
    assert path.read_bytes() == bytes(raw)


def test_a_second_chat_is_told_who_holds_the_profile(store: ProfileStore) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""
            from pathlib import Path
            from deltamem.profiles import ProfileStore
            with ProfileStore(Path({str(store.folder)!r})).lock("work"):
                print("held", flush=True)
                input()
        """)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ProfileError, match=f"in use by process {other.pid} since"), store.lock("work"):
        pass
    other.kill()
    other.wait()
    with store.lock("work"):  # a holder that was killed holds nothing
        pass


def test_kill_9_while_saving_leaves_one_of_the_last_two_turns(tmp_path: Path) -> None:
    assert crash_saves(tmp_path, turns=60) >= 1


def test_copy_rename_delete(store: ProfileStore) -> None:
    store.folder.mkdir()
    save_profile(store.path("a"), make_profile())
    store.copy("a", "b")
    with pytest.raises(ProfileError, match="'b' already"):
        store.copy("a", "b")
    store.rename("b", "c")
    assert store.names() == ["a", "c"]
    store.delete("a")
    with pytest.raises(ProfileError, match="no profile 'a'; there are c"):
        store.existing("a")
