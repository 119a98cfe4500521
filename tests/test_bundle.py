"""Exported bundles and merged profiles."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltamem.errors import ProfileError
from deltamem.profiles import Profile, ProfileStore, load_profile, save_profile
from deltamem.profiles.bundle import export_bundle, import_bundle
from deltamem.profiles.history import History
from deltamem.profiles.versions import merge, past, rewind, tag
from tests.test_history import begun, talked


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    store = ProfileStore(tmp_path / "profiles")
    store.folder.mkdir()
    talked(store.path("work"), 4)
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith(".lock")}


def test_a_bundle_comes_back_with_its_past(store: ProfileStore, tmp_path: Path) -> None:
    tag(store, "work", "before-move")
    bundle = export_bundle(store, "work", tmp_path / "work.deltamem")
    assert bundle.stat().st_mode & 0o777 == 0o600
    path = import_bundle(store, bundle, "again")
    assert path.read_bytes() == store.path("work").read_bytes()
    profile, history = past(store, "again")
    assert [e.turns for e in history.line(profile.info.entry)] == [0, 1, 2, 3, 4]
    assert history.find("before-move", profile.info.entry).turns == 4
    rewind(store, "again", "2")
    assert (load_profile(path).matrices == 2).all()
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in store.folder.glob("again.*"))


def test_a_bundle_says_what_it_is_and_holds_nothing_else(store: ProfileStore, tmp_path: Path) -> None:
    bundle = export_bundle(store, "work", tmp_path / "work.deltamem")
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {"profile.safetensors", "profile.history", "card.txt", "manifest.json"}
        assert "turns     4" in archive.read("card.txt").decode()
    assert bundle.read_bytes() == export_bundle(store, "work", tmp_path / "2.deltamem").read_bytes()
    with pytest.raises(ProfileError, match="exists"):
        export_bundle(store, "work", bundle)


def test_a_taken_name_is_refused(store: ProfileStore, tmp_path: Path) -> None:
    bundle = export_bundle(store, "work", tmp_path / "work.deltamem")
    before = files(store.folder)
    with pytest.raises(ProfileError, match="already"):
        import_bundle(store, bundle, "work")
    with pytest.raises(ProfileError, match="no profile name"):
        import_bundle(store, bundle, "../work2")
    assert files(store.folder) == before


@pytest.mark.parametrize("member", ["../../evil.txt", "/etc/evil", "profile.safetensors/../x", "profiles.safetensors"])
def test_an_archive_that_names_other_paths_is_refused(store: ProfileStore, tmp_path: Path, member: str) -> None:
    bundle = export_bundle(store, "work", tmp_path / "work.deltamem")
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr(member, b"evil")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ProfileError, match="no bundle"):
        import_bundle(store, bundle, "again")
    assert set(tmp_path.rglob("*")) == before


def test_what_was_changed_on_the_way_is_refused(store: ProfileStore, tmp_path: Path) -> None:
    bundle = export_bundle(store, "work", tmp_path / "work.deltamem")
    with zipfile.ZipFile(bundle) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members["card.txt"] += b"!"
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ProfileError, match=r"card.txt is not what it was"):
        import_bundle(store, bundle, "again")


def test_an_archive_that_unpacks_to_too_much_is_refused(store: ProfileStore, tmp_path: Path) -> None:
    bundle = tmp_path / "bomb.deltamem"
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.txt", b"0" * (1 << 24))
        archive.writestr("manifest.json", json.dumps({"format": "deltamem-bundle", "version": 1, "sha256": {}}))
    with pytest.raises(ProfileError, match="packed"):
        import_bundle(store, bundle, "again")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_bundle_is_refused_or_whole(store: ProfileStore, tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "work.deltamem"
    if not whole.exists():
        export_bundle(store, "work", whole)
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    bundle = tmp_path / "damaged.deltamem"
    bundle.write_bytes(bytes(raw[: cut if data.draw(st.booleans()) else len(raw)]))
    before = files(store.folder)
    try:
        path = import_bundle(store, bundle, "again")
    except ProfileError as error:
        assert files(store.folder) == before and "\n" not in str(error)
    else:
        assert path.read_bytes() == before["work.safetensors"]
        store.delete("again")


# Merging


def outer(value: int, key: int) -> np.ndarray:
    matrix = np.zeros((2, 1, 4, 4), np.float32)
    matrix[:, :, value, key] = 1
    return matrix


def put(store: ProfileStore, name: str, matrices: np.ndarray, adapter: str = "a" * 16) -> None:
    profile = begun(adapter)
    save_profile(store.path(name), Profile(profile.info, matrices, profile.matrices))


def test_what_lies_under_other_keys_survives_whole(store: ProfileStore) -> None:
    put(store, "a", outer(0, 0) + outer(1, 1))
    put(store, "b", outer(2, 2))
    entry, kept = merge(store, "a", "b")
    assert kept == pytest.approx(1.0) and entry.kind == "merge"
    np.testing.assert_allclose(load_profile(store.path("a")).matrices, outer(0, 0) + outer(1, 1) + outer(2, 2))


def test_what_lies_under_the_same_key_gives_way(store: ProfileStore) -> None:
    put(store, "a", outer(0, 0) + outer(1, 1))
    put(store, "b", outer(2, 1))
    merge(store, "a", "b")
    np.testing.assert_allclose(load_profile(store.path("a")).matrices, outer(0, 0) + outer(2, 1), atol=1e-6)
    rewind(store, "a", "0")
    assert (load_profile(store.path("b")).matrices == outer(2, 1)).all()


def test_weights_go_from_one_to_the_other(store: ProfileStore) -> None:
    a, b = outer(0, 0), outer(2, 2)
    for weight, expected in ((0.0, a), (0.25, a + 0.5 * b), (0.75, 0.5 * a + b), (1.0, b)):
        name = f"a{weight:g}"
        put(store, name, a)
        put(store, "b", b)
        merge(store, name, "b", weight)
        np.testing.assert_allclose(load_profile(store.path(name)).matrices, expected, atol=1e-6)


def test_a_merge_can_be_taken_back(store: ProfileStore) -> None:
    before = load_profile(store.path("work")).matrices
    put(store, "b", outer(1, 1))
    merge(store, "work", "b")
    profile, history = past(store, "work")
    line = history.line(profile.info.entry)
    assert [e.kind for e in line[-2:]] == ["turn", "merge"]
    rewind(store, "work", "4")
    np.testing.assert_array_equal(History(History.beside(store.path("work")), profile).matrices(line[-2].id), before)


def test_profiles_of_two_adapters_do_not_merge(store: ProfileStore) -> None:
    put(store, "b", outer(1, 1), adapter="c" * 16)
    before = files(store.folder)
    with pytest.raises(ProfileError, match="mean"):
        merge(store, "work", "b")
    with pytest.raises(ProfileError, match="weight"):
        merge(store, "work", "work", 2)
    assert files(store.folder)["work.safetensors"] == before["work.safetensors"]


@pytest.mark.skipif(not hasattr(Path, "symlink_to"), reason="no links here")
def test_links_in_the_folder_are_not_followed(store: ProfileStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    store.export("work", outside)
    store.path("linked").symlink_to(outside)
    with pytest.raises(ProfileError, match="link"):
        load_profile(store.path("linked"))
    past_file = History.beside(store.path("work"))
    past_file.rename(tmp_path / "past")
    past_file.symlink_to(tmp_path / "past")
    with pytest.raises(ProfileError, match="link"):
        past(store, "work")
