"""The past of a profile: every state it had, in a file that is only ever appended to between compactions.

A record is ``dmh1``, three little-endian 32-bit numbers (length of the description, length of the state, CRC-32 of
both), the description as JSON, and the state as float32. The first record describes the file. A record that is cut off
or damaged ends the history there: what stands before it is whole. A crash between writing a record and writing the
profile leaves a record the profile does not know; it is a state that can be gone to, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deltamem.errors import ProfileError, shown
from deltamem.inspection import Matrices
from deltamem.paths import write_private
from deltamem.profiles.file import Profile, now

LIMIT = 200
"""States kept by default, those with a label not counted."""

_MAGIC = b"dmh1"
_HEAD = struct.Struct("<4sIII")
_LONGEST = 64 * 1024


@dataclass(frozen=True)
class Entry:
    """One state of the past.

    Attributes:
        id: its number, rising.
        parent: the state it came from; None for the first.
        kind: what made it: turn, forget, begin (the state a profile had when its history began), merge.
        turns: turns in the profile then.
        tokens: tokens written then.
        time: UTC.
        change: how much the state changed, relative to its norm.
        label: a name given to it.
        gates: per adapted layer, the mean write gate of the turn; empty where it is not known.
    """

    id: int
    parent: int | None
    kind: str
    turns: int
    tokens: int
    time: str
    change: float
    label: str = ""
    gates: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"gates": list(self.gates)}

    @classmethod
    def of(cls, about: dict[str, Any]) -> Entry:
        """The other way round."""
        return cls(**{**about, "gates": tuple(about.get("gates", ()))})


class History:
    """The states of one profile. The profile's lock is held by whoever appends.

    Args:
        path: of the history file, which may not exist yet.
        profile: the profile it belongs to.
        limit: states kept.

    Raises:
        ProfileError: the file can't be read, or belongs to a profile of another adapter.
    """

    def __init__(self, path: Path, profile: Profile, limit: int = LIMIT) -> None:
        self.path, self._limit = path, limit
        self._shape = profile.matrices.shape
        self._about = {"format": "deltamem-history", "version": 1, "adapter": profile.info.adapter_fingerprint}
        self._known = [self._about | {"adapter": fingerprint} for fingerprint in profile.info.adapters]
        self.entries: dict[int, Entry] = {}
        self._places: dict[int, int] = {}
        self._end = 0
        if path.exists():
            self._read()

    @staticmethod
    def beside(profile: Path) -> Path:
        """Where the history of a profile file is."""
        return profile.with_suffix(".history")

    # Reading

    def _read(self) -> None:
        if self.path.is_symlink():
            raise ProfileError(f"{self.path} is a link, and only plain files are read")
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise ProfileError(f"can't read {self.path}: {error.strerror}") from None
        first = True
        for place, about, length in _records(data):
            if first:
                if about not in self._known:
                    raise ProfileError(
                        f"{self.path} is the history of a profile made with another adapter; it was left as it is"
                    )
                self._about, first = about, False
            elif "labelled" in about:
                entry = self.entries.get(about["labelled"])
                if entry is not None:
                    self.entries[entry.id] = replace(entry, label=str(about["label"]))
            elif length == self._bytes:
                entry = Entry.of(about)
                self.entries[entry.id], self._places[entry.id] = entry, place
            self._end = place + length
        if first and data:
            raise ProfileError(f"{self.path} is damaged or no history; it was left as it is")

    @property
    def _bytes(self) -> int:
        return 4 * math.prod(self._shape)

    def matrices(self, number: int) -> Matrices:
        """The state of an entry.

        Raises:
            ProfileError: there is none of that number, or its record was damaged since.
        """
        if number not in self._places:
            raise ProfileError(f"the history has no entry {number}")
        with self.path.open("rb") as file:
            file.seek(self._places[number])
            data = file.read(self._bytes)
        if len(data) != self._bytes:
            raise ProfileError(f"{self.path} was cut off")
        matrices = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(self._shape)
        if not np.isfinite(matrices).all():
            raise ProfileError(f"{self.path}: entry {number} holds NaN or infinite numbers")
        return matrices

    def line(self, head: int) -> list[Entry]:
        """The entries that led to one, the first first."""
        found: list[Entry] = []
        number: int | None = head
        while number is not None and number in self.entries:
            found.append(self.entries[number])
            number = self.entries[number].parent
        return found[::-1]

    def children(self, number: int) -> list[Entry]:
        """The entries that came from one, the latest last."""
        return sorted((e for e in self.entries.values() if e.parent == number), key=lambda e: e.id)

    def find(self, text: str, head: int) -> Entry:
        """An entry by its label, or the latest on the way to `head` that had so many turns.

        Raises:
            ProfileError: there is none.
        """
        for entry in sorted(self.entries.values(), key=lambda e: -e.id):
            if entry.label and entry.label == text:
                return entry
        if text.isdigit():
            for entry in reversed(self.line(head)):
                if entry.turns == int(text):
                    return entry
        raise ProfileError(
            f"the history has no turn and no label {shown(text)}; deltamem profiles log shows what there is"
        )

    # Writing

    def append(
        self, profile: Profile, kind: str = "turn", change: float = 0.0, gates: tuple[float, ...] = ()
    ) -> Profile:
        """Keep a state, and return the profile that knows its number.

        Raises:
            ProfileError: the file can't be written.
        """
        parent = profile.info.entry if profile.info.entry in self.entries else None
        entry = Entry(
            id=max(self.entries, default=0) + 1,
            parent=parent,
            kind=kind,
            turns=profile.info.turns,
            tokens=profile.info.tokens,
            time=now(),
            change=change,
            gates=gates,
        )
        place = self._write(entry.to_dict(), profile.matrices.astype("<f4").tobytes())
        self.entries[entry.id], self._places[entry.id] = entry, place
        kept = replace(profile, info=replace(profile.info, entry=entry.id))
        if len(self._places) > 2 * self._limit:
            self.compact(entry.id)
        return kept

    def label(self, number: int, label: str) -> None:
        """Give an entry a name; an entry that had it loses it.

        Raises:
            ProfileError: there is no such entry, or the file can't be written.
        """
        if number not in self.entries:
            raise ProfileError(f"the history has no entry {number}")
        for entry in list(self.entries.values()):
            if entry.label == label and entry.id != number:
                self._write({"labelled": entry.id, "label": ""}, b"")
                self.entries[entry.id] = replace(entry, label="")
        self._write({"labelled": number, "label": label}, b"")
        self.entries[number] = replace(self.entries[number], label=label)

    def _write(self, about: dict[str, Any], payload: bytes) -> int:
        """Append a record durably, after what is whole; returns where its payload begins."""
        data = b"" if self._end else _record(self._about, b"")
        data += _record(about, payload)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with os.fdopen(handle, "r+b") as file:
                file.truncate(self._end)  # what a crash left half written
                file.seek(self._end)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ProfileError(f"can't write {self.path}: {error.strerror or error}") from None
        self._end += len(data)
        return self._end - len(payload)

    def compact(self, head: int, limit: int | None = None) -> int:
        """Keep the latest states and those with a label, and `head`; returns how many were let go.

        Raises:
            ProfileError: the file can't be written.
        """
        limit = self._limit if limit is None else limit
        latest = set(sorted(self._places)[-limit:]) if limit else set()
        kept = [e for e in self.entries.values() if e.id in latest or e.label or e.id == head]
        gone = len(self.entries) - len(kept)
        known = {e.id for e in kept}
        data, places = [_record(self._about, b"")], {}
        end = len(data[0])
        for entry in sorted(kept, key=lambda e: e.id):
            parent = entry.parent
            while parent is not None and parent not in known:
                parent = self.entries[parent].parent if parent in self.entries else None
            payload = self.matrices(entry.id).astype("<f4").tobytes()
            record = _record(replace(entry, parent=parent).to_dict(), payload)
            self.entries[entry.id] = replace(entry, parent=parent)
            places[entry.id] = end + len(record) - len(payload)
            end += len(record)
            data.append(record)
        try:
            write_private(self.path, b"".join(data))
        except OSError as error:
            raise ProfileError(f"can't write {self.path}: {error.strerror or error}") from None
        self.entries = {number: self.entries[number] for number in places}
        self._places, self._end = places, end
        return gone


def at(profile: Profile, history: History, entry: Entry) -> Profile:
    """The profile as it was at an entry."""
    matrices = history.matrices(entry.id)
    parent = entry.parent
    before = history.matrices(parent) if parent is not None and parent in history.entries else matrices
    info = replace(profile.info, turns=entry.turns, tokens=entry.tokens, updated=now(), entry=entry.id)
    return Profile(info, matrices, before)


def _record(about: dict[str, Any], payload: bytes) -> bytes:
    text = json.dumps(about, sort_keys=True).encode()
    return _HEAD.pack(_MAGIC, len(text), len(payload), zlib.crc32(text + payload)) + text + payload


def _records(data: bytes) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(where the payload begins, the description, the payload's length) of the records that are whole."""
    place = 0
    while place + _HEAD.size <= len(data):
        magic, text_length, length, check = _HEAD.unpack_from(data, place)
        start = place + _HEAD.size
        end = start + text_length + length
        if magic != _MAGIC or text_length > _LONGEST or end > len(data) or zlib.crc32(data[start:end]) != check:
            return
        try:
            about = json.loads(data[start : start + text_length])
        except (ValueError, RecursionError):
            return
        if not isinstance(about, dict):
            return
        yield start + text_length, about, length
        place = end
