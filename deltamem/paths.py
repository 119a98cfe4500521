"""Where things are kept on this machine, and how to make folders and files that only the user can read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def user_path(text: str) -> Path:
    """What a person typed as a path: a leading ~ is their home, and ~ of somebody unknown stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def data_dir() -> Path:
    """Profiles and history: `$DELTAMEM_HOME`, or the platform's data folder."""
    home = os.environ.get("DELTAMEM_HOME")
    return user_path(home) if home else user_data_path("deltamem", appauthor=False)


def profiles_dir() -> Path:
    """Where named profiles are."""
    return data_dir() / "profiles"


def cache_dir() -> Path:
    """Backbones that were fetched or converted: `$DELTAMEM_CACHE`, or the platform's cache folder."""
    cache = os.environ.get("DELTAMEM_CACHE")
    return user_path(cache) if cache else user_cache_path("deltamem", appauthor=False)


def private_dir(path: Path) -> Path:
    """Make a folder with its parents; the ones made here are 0700 whatever the umask."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably, 0600: written beside, fsynced, renamed.

    A crash at any moment leaves the old file or the new one. The file beside carries this process's number, and is
    removed when writing fails.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o600)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # make the rename itself durable
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def clear_abandoned(path: Path) -> None:
    """Remove what processes that are gone left half written beside a file, and beside those named like it."""
    for beside in path.parent.glob(f".{path.stem}.*.tmp"):
        number = beside.name.split(".")[-2]
        if number.isdigit() and not _alive(int(number)):
            with suppress(OSError):
                beside.unlink()


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, asking ends a process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is there and not ours, or nothing can be said
    return True
