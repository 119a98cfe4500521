"""Going back, branching and comparing, on profiles that lie on disk: no backbone is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamem.errors import ProfileError
from deltamem.inspection import HeadSummary, change_between, summarize
from deltamem.profiles.file import Profile, load_profile, save_profile
from deltamem.profiles.history import Entry, History, at
from deltamem.profiles.store import ProfileStore


def past(store: ProfileStore, name: str) -> tuple[Profile, History]:
    """A profile and its history, to be looked at.

    Raises:
        ProfileError: there is none, or one of the files can't be used.
    """
    path = store.existing(name)
    profile = load_profile(path)
    return profile, History(History.beside(path), profile)


@contextmanager
def _held(store: ProfileStore, name: str) -> Iterator[tuple[Path, Profile, History]]:
    path = store.existing(name)
    with store.lock(name):
        profile = load_profile(path)
        yield path, profile, History(History.beside(path), profile)


def rewind(store: ProfileStore, name: str, to: str) -> Entry:
    """Go to a turn or label; what came after stays in the history.

    Raises:
        ProfileError: there is no such turn or label, or the profile is in use.
    """
    with _held(store, name) as (path, profile, history):
        entry = history.find(to, profile.info.entry)
        save_profile(path, at(profile, history, entry))
    return entry


def tag(store: ProfileStore, name: str, label: str) -> Entry:
    """Give the present state a name, which also keeps it from being let go.

    Raises:
        ProfileError: the label is empty, too long or a number, or the profile is in use.
    """
    if not label.strip() or len(label) > 100 or label.isdigit() or not label.isprintable():
        raise ProfileError("a label has 1 to 100 printable characters and is not a number")
    with _held(store, name) as (path, profile, history):
        if profile.info.entry not in history.entries:
            profile = history.append(profile, "begin")
            save_profile(path, profile)
        history.label(profile.info.entry, label)
        return history.entries[profile.info.entry]


def branch(store: ProfileStore, name: str, target: str, to: str | None = None) -> Path:
    """A new profile that begins where another one is, or was at a turn or label.

    Raises:
        ProfileError: the target exists, or there is no such turn or label.
    """
    if to is not None:
        profile, history = past(store, name)
        history.find(to, profile.info.entry)
    path = store.copy(name, target)
    if to is not None:
        rewind(store, target, to)
    return path


def prune(store: ProfileStore, name: str, keep: int = 0) -> int:
    """Let go of the past but for the latest `keep` states, labels and the present; returns how many went.

    Raises:
        ProfileError: the profile is in use.
    """
    with _held(store, name) as (_, profile, history):
        return history.compact(profile.info.entry, keep) if history.entries else 0


def difference(store: ProfileStore, one: str, other: str) -> tuple[float, list[HeadSummary]]:
    """How far apart two profiles are, relative to the second, and layer by layer.

    Raises:
        ProfileError: they belong to different adapters.
    """
    a, b = (load_profile(store.existing(name)) for name in (one, other))
    if a.info.adapter_fingerprint != b.info.adapter_fingerprint:
        raise ProfileError(
            f"{one} was made with {a.info.adapter} and {other} with {b.info.adapter}; they can't be compared"
        )
    return change_between(a.matrices, b.matrices), summarize(b.matrices, a.matrices, b.info.layers)
