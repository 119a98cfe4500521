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
from deltamem.memory import DeltaMemory
from deltamem.paths import private_dir
from deltamem.profiles.file import Profile, ProfileInfo, empty_profile, load_profile, save_profile
from deltamem.profiles.store import ProfileStore
from deltamem.session import ChatSession, Event, MemoryMode, Sampling, TurnFinished


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
    ) -> None:
        self.backbone, self.adapter, self.read_only = backbone, adapter, read_only
        self.store = store or ProfileStore()
        self.memory: DeltaMemory | None = None
        self.profile_name: str | None = None
        self.profile: Profile | None = None
        self._before_turn: Profile | None = None
        self._held = ExitStack()
        self._fingerprint = ""
        if adapter is not None:
            try:
                self.memory = DeltaMemory.from_pretrained(backbone.model, adapter)
            except AttachError as error:
                raise AdapterError(str(error)) from None
            self._fingerprint = adapter_fingerprint(self.memory.config, self.memory.adapter_tensors())
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
            self.session.replace_state(profile.state)
        except BaseException:
            held.close()
            raise
        self._held.close()
        self._held = held
        self.profile_name, self.profile, self._before_turn = name, profile, None

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
        """Empty the state, and the profile with it."""
        self.session.replace_state(None)
        if self.profile is not None and not self.read_only:
            self._before_turn = None
            fresh = self._new_profile()
            self.profile = replace(fresh, info=replace(fresh.info, title=self.profile.info.title))
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
        if session.mode != "on" or self.read_only:
            return
        self._before_turn = self.profile
        self.profile = self.profile.after_turn(state, before, turn.written_tokens)
        self.save()

    def undo(self) -> bool:
        """Take the last turn back, in the profile too; false when there is none."""
        if not self.session.undo():
            return False
        if self._before_turn is not None:
            self.profile, self._before_turn = self._before_turn, None
            self.save()
        return True
