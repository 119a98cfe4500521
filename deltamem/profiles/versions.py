"""Going back, branching and comparing, on profiles that lie on disk: no backbone is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltamem.errors import ProfileError
from deltamem.inspection import HeadSummary, change_between, summarize
from deltamem.profiles.file import Profile, load_profile, now, save_profile
from deltamem.profiles.history import Entry, History, at
from deltamem.profiles.merging import merged_matrices
from deltamem.profiles.store import ProfileStore

MEANS_THE_SAME = {
    "own_share",
    "learned_erase",
    "reply_floor",
    "joint_gate",
    "second_reader",
    "third_reader",
    "plain_read",
    "choices",
    "choice_rank",
}
"""Options by which a state that is there means no other thing: of what is yet to be written, and of when it is read."""


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
    _check_same_adapter(one, a, other, b)
    return change_between(a.matrices, b.matrices), summarize(b.matrices, a.matrices, b.info.layers)


def merge(store: ProfileStore, name: str, other: str, weight: float = 0.5) -> tuple[Entry, float]:
    """Write another profile's state over one's own; the state before stays in the history.

    Args:
        store: where the profiles are.
        name: A, which is changed.
        other: B, which is not.
        weight: the share of B, 0 to 1; see `merged_matrices`.

    Returns:
        The new entry of A's history, and the share of A's norm that was kept.

    Raises:
        ProfileError: they belong to different adapters, or A is in use.
    """
    if not 0 <= weight <= 1:
        raise ProfileError(f"a weight is between 0 and 1, not {weight:g}")
    theirs = load_profile(store.existing(other))
    with _held(store, name) as (path, profile, history):
        _check_same_adapter(name, profile, other, theirs)
        if profile.info.entry not in history.entries:
            profile = history.append(profile, "begin")
        merged, kept = merged_matrices(profile.matrices, theirs.matrices, weight)
        info = replace(
            profile.info,
            turns=profile.info.turns + theirs.info.turns,
            tokens=profile.info.tokens + theirs.info.tokens,
            updated=now(),
        )
        after = history.append(
            Profile(info, merged, profile.matrices), "merge", change_between(profile.matrices, merged)
        )
        save_profile(path, after)
        return history.entries[after.info.entry], kept


def upgrade(store: ProfileStore, name: str, adapter: str, fingerprint: str, config: dict[str, Any]) -> None:
    """Let another adapter read a profile, one of the same keys and values or all but the same; state and history stay
    as they are.

    Args:
        store: where the profile is.
        name: of it.
        adapter: name of the other one, of which the caller knows that it reads what was written. `own_share`,
            `learned_erase` and `reply_floor` may be others: those change keys within a value, what is taken out, and
            which replies are written, alone.
        fingerprint: of that.
        config: its live options.

    Raises:
        ProfileError: its other options are others, so its keys and values are as well, or the profile is in use.
    """
    with _held(store, name) as (path, profile, _):
        info = profile.info
        if _meaning(config) != _meaning(info.adapter_config):
            raise ProfileError(
                f"{name} was made with {info.adapter}, and {adapter} has another memory; it stays as it is"
            )
        before = tuple(sorted(info.adapters - {fingerprint}))
        changed = replace(
            info, adapter=adapter, adapter_fingerprint=fingerprint, adapter_config=config, adapters_before=before
        )
        save_profile(path, replace(profile, info=changed))


def _meaning(config: dict[str, Any]) -> dict[str, Any]:
    """The options by which a state means something."""
    return {option: value for option, value in config.items() if option not in MEANS_THE_SAME}


def _check_same_adapter(name: str, one: Profile, other: str, two: Profile) -> None:
    if not one.info.adapters & two.info.adapters:
        raise ProfileError(
            f"{name} was made with {one.info.adapter} and {other} with {two.info.adapter}; their numbers mean "
            "different things"
        )
