"""A profile with its past in one file, to keep or to send: a ZIP archive of members with fixed names.

`profile.safetensors`, `profile.history` where there is one, `card.txt` for a person to read, and `manifest.json` with
the SHA-256 of each. Members are stored as they are: numbers hardly compress, and nothing can unpack to more than the
file's own size. Nothing is ever unpacked to a path that the archive names.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
import zlib
from pathlib import Path

from deltamem.errors import ProfileError
from deltamem.paths import private_dir, write_private
from deltamem.profiles.file import ProfileInfo, load_profile
from deltamem.profiles.history import History
from deltamem.profiles.store import ProfileStore

SUFFIX = ".deltamem"
_PROFILE, _HISTORY, _CARD, _MANIFEST = "profile.safetensors", "profile.history", "card.txt", "manifest.json"
_MEMBERS = (_PROFILE, _HISTORY, _CARD, _MANIFEST)
_FORMAT = {"format": "deltamem-bundle", "version": 1}


def export_bundle(store: ProfileStore, name: str, file: Path) -> Path:
    """Write a profile, its history and a card to one file, 0600; an existing file is refused.

    Raises:
        ProfileError: the profile can't be read, or the file can't be written.
    """
    if file.exists():
        raise ProfileError(f"{file} exists already; choose another name")
    path = store.existing(name)
    profile = load_profile(path)
    members = {_PROFILE: path.read_bytes()}
    past = History.beside(path)
    states = 0
    if past.exists():
        states = len(History(past, profile).entries)
        members[_HISTORY] = past.read_bytes()
    members[_CARD] = _card(name, profile.info, states).encode()
    sums = {member: hashlib.sha256(data).hexdigest() for member, data in members.items()}
    members[_MANIFEST] = json.dumps(_FORMAT | {"sha256": sums}, indent=2, sort_keys=True).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in members.items():
            # A fixed time, so that the same profile makes the same file.
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), data)
    try:
        write_private(file, buffer.getvalue())
    except OSError as error:
        raise ProfileError(f"can't write {file}: {error.strerror or error}") from None
    return file


def import_bundle(store: ProfileStore, file: Path, name: str) -> Path:
    """Take a bundle in under a name, once all of it has been checked; an existing profile is refused.

    Raises:
        ProfileError: the file is damaged or no bundle, or the name is taken. Nothing was kept of it.
    """
    goal = store.free(name)
    members = _read(file)
    private_dir(goal.parent)
    with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".import-") as folder:
        path = Path(folder) / goal.name
        write_private(path, members[_PROFILE])
        try:
            profile = load_profile(path)
            if _HISTORY in members:
                write_private(History.beside(path), members[_HISTORY])
                History(History.beside(path), profile)
        except ProfileError as error:
            raise ProfileError(f"{file}: {str(error).replace(str(path.parent) + '/', '')}") from None
        with store.lock(name):
            if _HISTORY in members:
                History.beside(path).replace(History.beside(goal))
            path.replace(goal)
    return goal


def _read(file: Path) -> dict[str, bytes]:
    """The members, checked against the manifest."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {}
            for entry in archive.infolist():
                if entry.filename not in _MEMBERS or entry.filename in members or entry.flag_bits & 1:
                    raise ProfileError(f"{file} is no bundle of a profile: it holds {entry.filename[:60]!r}")
                stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
                if not stored or entry.file_size > file.stat().st_size:
                    raise ProfileError(f"{file}: {entry.filename} is packed in a way that deltamem does not write")
                members[entry.filename] = archive.read(entry)
    except FileNotFoundError:
        raise ProfileError(f"there is no file {file}") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise ProfileError(f"{file} is damaged or no bundle of a profile ({error}); it was left as it is") from None
    if _PROFILE not in members or _MANIFEST not in members:
        raise ProfileError(f"{file} is no bundle of a profile: a member is missing")
    try:
        manifest = json.loads(members[_MANIFEST])
        about = {key: manifest[key] for key in _FORMAT}
        sums = dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProfileError(f"{file}: its manifest is damaged") from None
    if about != _FORMAT:
        raise ProfileError(f"{file} is of another version of deltamem; update it")
    for member, data in members.items():
        if member != _MANIFEST and sums.get(member) != hashlib.sha256(data).hexdigest():
            raise ProfileError(f"{file}: {member} is not what it was when it was exported")
    return members


def _card(name: str, info: ProfileInfo, states: int) -> str:
    return (
        f"A deltamem memory profile, exported as {name}.\n\n"
        f"backbone  {info.backbone} ({info.backbone_fingerprint})\n"
        f"adapter   {info.adapter} ({info.adapter_fingerprint})\n"
        f"turns     {info.turns}\n"
        f"tokens    {info.tokens}\n"
        f"created   {info.created}\n"
        f"updated   {info.updated}\n"
        f"history   {states} states\n\n"
        "It holds no text of the conversation, but what was told can be asked for with the backbone and the adapter\n"
        "above. Whoever you give it to can ask.\n\n"
        f"deltamem profiles import FILE{SUFFIX} --name NAME\n"
    )
