"""`ProfileChat`: a conversation whose memory is kept in a profile, saved after every turn.

It joins what the other parts do: the session makes turns, the profile file keeps the state, the store locks it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from deltamem.adapter import adapter_fingerprint
from deltamem.backbones.load import Backbone
from deltamem.errors import AdapterError, AttachError, ProfileError
from deltamem.inspection import change_between
from deltamem.memory import DeltaMemory
from deltamem.paths import private_dir
from deltamem.profiles.file import Profile, ProfileInfo, empty_profile, load_profile, now, save_profile
from deltamem.profiles.history import LIMIT, Entry, History, at
from deltamem.profiles.store import ProfileStore
from deltamem.session import ChatSession, Event, MemoryMode, RecordedTokens, Sampling, TurnFinished


class ProfileChat:
    """A chat with a backbone, its memory, and a profile. Use it as a context manager: it holds the profile's lock.

    Args:
        backbone: a loaded backbone.
        adapter: name, directory or hub id of an adapter; None chats with the frozen backbone.
        profile: name or path of the profile; None keeps nothing.
        read_only: read the profile, write neither it nor the state.
        store: where named profiles are.
        mode: see `ChatSession`.
        system: see `ChatSession`.
        context: see `ChatSession`.
        sampling: see `ChatSession`.
        history: how many past states the profile keeps.
        record: on a GPU, record the call for one token and replay it (see `RecordedTokens`).

    Raises:
        AdapterError: the adapter does not fit the backbone.
        ProfileError: the profile is damaged, in use, or was made with something else.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: str | None,
        profile: str | None = None,
        *,
        read_only: bool = False,
        store: ProfileStore | None = None,
        mode: MemoryMode = "on",
        system: str | None = None,
        context: int = 2048,
        sampling: Sampling | None = None,
        history: int = LIMIT,
        record: bool = False,
    ) -> None:
        self.backbone, self.adapter, self.read_only = backbone, adapter, read_only
        self.history_limit = history
        self.store = store or ProfileStore()
        self.memory: DeltaMemory | None = None
        self.profile_name: str | None = None
        self.profile: Profile | None = None
        self._history: History | None = None
        self._recorded = True
        self._held = ExitStack()
        self._fingerprint = ""
        if adapter is not None:
            try:
                self.memory = DeltaMemory.from_pretrained(backbone.model, adapter)
            except AttachError as error:
                raise AdapterError(str(error)) from None
            self._fingerprint = adapter_fingerprint(self.memory.config, self.memory.adapter_tensors())
        self.recorded = RecordedTokens(backbone.model, self.memory) if record else None
        try:
            self.session = ChatSession(
                backbone.model,
                backbone.tokenizer,
                self.memory,
                system=system,
                context=context,
                sampling=sampling,
                mode="read" if read_only and mode == "on" else mode,
                stops=backbone.stops,
                trace=True,
                recorded=self.recorded,
            )
            if profile is not None:
                self.open_profile(profile)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ProfileChat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the profile's lock back and take the memory off the model."""
        self._held.close()
        if self.memory is not None:
            self.memory.detach()

    # Profiles

    @property
    def path(self) -> Path | None:
        """The profile's file, which may not exist before the first turn."""
        return self.store.path(self.profile_name) if self.profile_name is not None else None

    @property
    def turns(self) -> int:
        """Turns in the profile."""
        return self.profile.info.turns if self.profile else 0

    def open_profile(self, name: str) -> None:
        """Go on with a profile, a new one where there is none of that name; the window begins empty.

        Raises:
            ProfileError: it can't be used; the chat goes on with the one it had.
        """
        if self.memory is None:
            raise ProfileError(f"{self.backbone.name} has no adapter, so there is no memory to keep in a profile")
        path = self.store.path(name)
        held = ExitStack()
        if not self.read_only:
            if self.path is not None and path == self.path:
                return
            held.enter_context(self.store.lock(name))
        try:
            if path.exists():
                profile = load_profile(path)
                profile.check_fits(self.backbone.name, self.backbone.fingerprint, str(self.adapter), self._fingerprint)
            elif self.read_only:
                raise ProfileError(f"there is no profile {name!r} to read")
            else:
                profile = self._new_profile()
            self.session.replace_state(profile.state, profile.before)
        except BaseException:
            held.close()
            raise
        self._held.close()
        self._held = held
        self.profile_name, self.profile = name, profile
        self._history = None if self.read_only else self._open_history(path, profile)

    def _open_history(self, path: Path, profile: Profile) -> History:
        beside = History.beside(path)
        try:
            return History(beside, profile, self.history_limit)
        except ProfileError:
            # The memory does not hang on its past: what can't be used is put aside, and a new history begins.
            beside.replace(beside.with_suffix(f".history.damaged-{now().replace(':', '')}"))
            return History(beside, profile, self.history_limit)

    def _new_profile(self) -> Profile:
        assert self.memory is not None
        return empty_profile(
            ProfileInfo(
                backbone=self.backbone.name,
                backbone_fingerprint=self.backbone.fingerprint,
                adapter=str(self.adapter),
                adapter_fingerprint=self._fingerprint,
                adapter_config=self.memory.config.to_dict(),
                layers=self.memory.layer_indices,
            )
        )

    def save(self, name: str | None = None) -> Path | None:
        """Save now, under another name where one is given; returns the file.

        Raises:
            ProfileError: the name is taken, or the file can't be written.
        """
        if self.profile is None:
            return None
        if name is not None:
            path = self.store.path(name)
            if path.exists():
                raise ProfileError(f"there is a profile {name!r} already")
            private_dir(path.parent)
            save_profile(path, self.profile)
            return path
        if not self.read_only and self.path is not None:
            save_profile(self.path, self.profile)
        return self.path

    def forget(self) -> None:
        """Go on with an empty state; the past stays in the history until it is pruned."""
        if self.profile is not None and not self.read_only:
            fresh = self._new_profile()
            info = replace(fresh.info, title=self.profile.info.title, entry=self.profile.info.entry)
            self._record(replace(fresh, info=info), "forget")
        self.session.replace_state(None)

    def _record(self, profile: Profile, kind: str) -> None:
        """Put a state into the history, and then into the profile's file."""
        if self._history is not None:
            if self.profile is not None and self.profile.info.entry not in self._history.entries:
                begun = self._history.append(self.profile, "begin")  # a profile from before there was a history
                profile = replace(profile, info=replace(profile.info, entry=begun.info.entry))
            change = change_between(profile.matrices_before, profile.matrices)
            writes = self.session.writes if kind == "turn" else None
            profile = self._history.append(profile, kind, change, writes.layers if writes else ())
        self.profile = profile
        self.save()

    # Turns

    def send(self, text: str) -> Iterator[Event]:
        """A turn; see `ChatSession.send`. The profile is on disk before its `TurnFinished` is yielded."""
        yield from self._kept(self.session.send(text))

    def ingest(self, text: str) -> Iterator[Event]:
        """Read a message into the memory; see `ChatSession.ingest`."""
        yield from self._kept(self.session.ingest(text))

    def _kept(self, events: Generator[Event, None, None]) -> Iterator[Event]:
        before = self.session.state
        finished = False
        try:
            for event in events:
                if isinstance(event, TurnFinished):
                    finished = True
                    self._keep()
                yield event
        finally:
            events.close()
            # Closed in the middle of a reply: the session kept what was said as the turn.
            if not finished and self.session.state is not before:
                self._keep()

    def _keep(self) -> None:
        session = self.session
        state, before, turn = session.state, session.state_before, session.last
        if self.profile is None or state is None or before is None or turn is None:
            return
        self._recorded = session.mode == "on" and not self.read_only
        if not self._recorded:
            return
        self._record(self.profile.after_turn(state, before, turn.written_tokens), "turn")

    def undo(self, turns: int = 1) -> int:
        """Take the last turns back, in the profile too; returns how many were taken back.

        Where the window still holds the last turn and no more are taken back, it goes on as before that turn;
        otherwise it begins empty.
        """
        if self._history is None or self.profile is None or (turns == 1 and not self._recorded):
            self._recorded = True  # a turn that only read is taken back from the window alone
            return int(turns > 0 and self.session.undo())
        line = self._history.line(self.profile.info.entry)
        count = min(turns, max(0, len(line) - 1))
        if count:
            self._go_to(line[-1 - count], self.session.undo() if count == 1 else False)
        return count

    def redo(self) -> bool:
        """Take back the last undo; false when there was none, or something was said since."""
        if self._history is None or self.profile is None:
            return False
        later = self._history.children(self.profile.info.entry)
        if later:
            self._go_to(later[-1], False)
        return bool(later)

    def _go_to(self, entry: Entry, window_kept: bool) -> None:
        assert self._history is not None and self.profile is not None
        self.profile = at(self.profile, self._history, entry)
        if not window_kept:
            self.session.replace_state(self.profile.state)
        self.session.state_before = self.profile.before
        self.save()
