"""Named profiles in a folder: listing, finding, locking, copying, renaming, deleting."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deltamem.errors import ProfileError, shown
from deltamem.paths import clear_abandoned, private_dir, profiles_dir, user_path, write_private
from deltamem.profiles.file import load_profile, now
from deltamem.profiles.history import History

SUFFIX = ".safetensors"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10)}


class ProfileStore:
    """Profiles in one folder. Wherever a name is taken, a path ending in `.safetensors` works too.

    Args:
        folder: where named profiles are; by default `$DELTAMEM_HOME/profiles` or the platform's data folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or profiles_dir()

    def path(self, name: str) -> Path:
        """Where a profile is, or would be.

        Raises:
            ProfileError: the name has other characters than letters, digits, dot, dash and underscore.
        """
        if name.endswith(SUFFIX) and _nameable(path := user_path(name)):
            return path
        if not _NAME.fullmatch(name) or name.startswith((".", "-")) or name.lower() in _RESERVED:
            raise ProfileError(
                f"{shown(name)} is no profile name: use letters, digits, dot, dash and underscore (not first a dot or "
                f"dash), or a path ending in {SUFFIX}"
            )
        return self.folder / (name + SUFFIX)

    def exists(self, name: str) -> bool:
        """Whether there is such a profile."""
        return self.path(name).is_file()

    def existing(self, name: str) -> Path:
        """Where a profile is.

        Raises:
            ProfileError: there is none of that name; the message lists some there are.
        """
        path = self.path(name)
        if not path.exists():
            names = self.names()
            known = f"; there are {', '.join(names[:8])}" if names else "; there are none yet"
            raise ProfileError(f"there is no profile {shown(name)}{known}")
        return path

    def names(self) -> list[str]:
        """Names of the profiles in the folder, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name.removesuffix(SUFFIX) for p in self.folder.glob("*" + SUFFIX) if not p.name.startswith("."))

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a profile for writing.

        Raises:
            ProfileError: another process holds it; the message says which.
        """
        path = self.path(name)
        private_dir(path.parent)
        lock_path = path.with_name(f".{path.name}.lock")
        holder_path = path.with_name(f".{path.name}.holder")
        lock = FileLock(lock_path, timeout=0, mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            raise ProfileError(
                f"profile {name!r} is in use{_holder(holder_path)}; --read-only opens it without writing"
            ) from None
        except OSError as error:
            raise ProfileError(f"can't lock {path}: {error.strerror or error}") from None
        try:
            clear_abandoned(path)
            with contextlib.suppress(OSError):
                write_private(holder_path, json.dumps({"pid": os.getpid(), "since": now()}).encode())
            yield
        finally:
            with contextlib.suppress(OSError):
                holder_path.unlink(missing_ok=True)
            lock.release()  # the lock file stays: unlinking it would let two processes lock two files

    def copy(self, source: str, target: str) -> Path:
        """Copy a profile and its history byte for byte; an existing target is refused."""
        origin, goal = self.existing(source), self.free(target)
        load_profile(origin)
        private_dir(goal.parent)
        past = History.beside(origin)
        if past.exists():
            write_private(History.beside(goal), past.read_bytes())
        write_private(goal, origin.read_bytes())
        return goal

    def export(self, name: str, file: Path) -> Path:
        """Copy a profile without its history to a file; an existing one is refused."""
        origin = self.existing(name)
        load_profile(origin)
        if file.exists():
            raise ProfileError(f"{file} exists already; choose another name")
        try:
            write_private(file, origin.read_bytes())
        except OSError as error:
            raise ProfileError(f"can't write {file}: {error.strerror or error}") from None
        return file

    def rename(self, source: str, target: str) -> Path:
        """Give a profile another name; an existing target is refused."""
        origin, goal = self.existing(source), self.free(target)
        private_dir(goal.parent)
        with self.lock(source):
            past = History.beside(origin)
            if past.exists():
                past.replace(History.beside(goal))
            origin.replace(goal)
        return goal

    def delete(self, name: str) -> None:
        """Remove a profile."""
        path = self.existing(name)
        with self.lock(name):
            path.unlink()
            History.beside(path).unlink(missing_ok=True)

    def free(self, name: str) -> Path:
        """Where a new profile would be.

        Raises:
            ProfileError: there is one of that name already.
        """
        path = self.path(name)
        if path.exists():
            raise ProfileError(f"there is a profile {name!r} already; delete it first or choose another name")
        return path


def _holder(path: Path) -> str:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return f" by process {int(data['pid'])} since {str(data['since'])[:20]}"
    except (OSError, ValueError, KeyError, TypeError):
        return " by another process"


def _nameable(path: Path) -> bool:
    """Whether the system can have a file of that name: nothing in it that has no bytes, nothing too long."""
    try:
        return "\0" not in str(path) and len(os.fsencode(path)) < 4096 and len(os.fsencode(path.name)) <= 200
    except UnicodeEncodeError:
        return False
