"""`deltamem profiles`: what is kept, and moving it about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deltamem.backbones.catalog import newer_adapter, takes_over
from deltamem.errors import ProfileError
from deltamem_cli.terminal import notice, out, pairs, table, write_json


def run_list(as_json: bool) -> None:
    """All profiles in the folder; one that can't be read is listed as such."""
    from deltamem.profiles import ProfileStore, load_profile

    store = ProfileStore()
    found = []
    for name in store.names():
        path = store.path(name)
        try:
            info = load_profile(path).info
            found.append({"name": name, "backbone": info.backbone, "turns": info.turns, "updated": info.updated,
                          "bytes": path.stat().st_size, "error": None})  # fmt: skip
        except ProfileError as error:
            found.append({"name": name, "backbone": None, "turns": None, "updated": None,
                          "bytes": path.stat().st_size if path.exists() else 0, "error": str(error)})  # fmt: skip
    if as_json:
        write_json(found)
    elif not found:
        notice(f"No profiles yet in {store.folder}. deltamem chat --profile NAME begins one.")
    else:
        rows = [
            (p["name"], p["backbone"] or "can't be read", p["turns"] if p["turns"] is not None else "-",
             p["updated"] or "-", f"{(p['bytes'] or 0) / 1000:.1f} kB")  # type: ignore[operator]
            for p in found
        ]  # fmt: skip
        table(("name", "backbone", "turns", "last used", "size"), rows, right=("turns", "size"))


def run_show(name: str, as_json: bool) -> None:
    """What a profile says about itself."""
    from deltamem.profiles import ProfileStore, load_profile

    path = ProfileStore().existing(name)
    info = load_profile(path).info
    size = path.stat().st_size
    newer = newer_adapter(info.backbone, info.adapter)
    if takes_over(info.backbone, info.adapter):
        how = f"deltamem profiles upgrade {name} has it read this one"
    else:
        how = "a new profile uses it, this one stays with its own"
    if as_json:
        write_json({"name": name, "path": str(path), "bytes": size, **info.to_dict(), "newer_adapter": newer})
        return
    config = info.adapter_config
    shape = f"{len(info.layers)} layers, {config['num_state_heads']} x {config['rank']} x {config['rank']} each"
    pairs([("name", name), ("file", f"{path} ({size / 1000:.1f} kB)"), ("title", info.title or "-"),
           ("backbone", f"{info.backbone} ({info.backbone_fingerprint})"),
           ("adapter", f"{info.adapter} ({info.adapter_fingerprint})"),
           *([("newer adapter", f"{newer}; {how}")] if newer else []),
           ("state", shape),
           ("turns", info.turns), ("tokens written", info.tokens),
           ("created", info.created), ("updated", info.updated)])  # fmt: skip


def run_upgrade(name: str) -> None:
    """Let the newest adapter read a profile."""
    from deltamem.adapter import SHIPPED, adapter_fingerprint
    from deltamem.config import DeltaMemConfig
    from deltamem.memory import DeltaMemory
    from deltamem.profiles import ProfileStore, load_profile
    from deltamem.profiles.versions import upgrade
    from deltamem_cli.opening import open_backbone

    def shipped(adapter: str) -> tuple[str, DeltaMemConfig]:
        memory = DeltaMemory.from_pretrained(backbone.model, SHIPPED / adapter)
        memory.detach()
        return adapter_fingerprint(memory.config, memory.adapter_tensors()), memory.config

    store = ProfileStore()
    info = load_profile(store.existing(name)).info
    newest = takes_over(info.backbone, info.adapter)
    if newest is None:
        newer = newer_adapter(info.backbone, info.adapter)
        why = f"{newer} reads another memory, so a new profile is needed for it" if newer else "there is no newer one"
        raise ProfileError(f"{name} stays with the adapter {info.adapter}: {why}")
    backbone = open_backbone(info.backbone, "cpu", "auto")
    made_with = {info.backbone: info.backbone_fingerprint, info.adapter: info.adapter_fingerprint}
    here = {info.backbone: backbone.fingerprint, info.adapter: shipped(info.adapter)[0]}
    for what, fingerprint in made_with.items():
        if fingerprint != here[what]:
            raise ProfileError(f"{name} was made with another {what} than the one there is here; it stays as it is")
    fingerprint, config = shipped(newest)
    upgrade(store, name, newest, fingerprint, config.to_dict())
    notice(f"{name} is read with {newest} from here on, and not with {info.adapter}; what it remembers is the same.")


def run_copy(source: str, target: str) -> None:
    """Copy a profile."""
    from deltamem.profiles import ProfileStore

    notice(f"Copied to {ProfileStore().copy(source, target)}")


def run_rename(source: str, target: str) -> None:
    """Rename a profile."""
    from deltamem.profiles import ProfileStore

    notice(f"Renamed to {ProfileStore().rename(source, target)}")


def run_delete(name: str, yes: bool) -> None:
    """Delete a profile, after asking."""
    from deltamem.profiles import ProfileStore

    store = ProfileStore()
    path = store.existing(name)
    if not yes:
        if not sys.stdin.isatty():
            raise ProfileError(f"deleting {path} needs --yes where nobody can be asked")
        out.print(f"Delete {path}? [y/N] ", end="", markup=False)
        if input().strip().lower() not in ("y", "yes"):
            notice("Nothing was deleted.")
            return
    store.delete(name)
    notice(f"Deleted {path}")


def run_export(name: str, file: Path) -> None:
    """Write a profile with its history to one file, or the profile alone to a .safetensors file."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.bundle import SUFFIX, export_bundle

    if file.suffix == SUFFIX:
        notice(f"Exported with its history to {export_bundle(ProfileStore(), name, file)}")
    elif file.suffix == ".safetensors":
        notice(f"Exported without its history to {ProfileStore().export(name, file)}")
    else:
        raise ProfileError(f"{file} must end in {SUFFIX} (with the history) or .safetensors (without)")


def run_import(file: Path, name: str | None) -> None:
    """Take a profile file or a bundle into the folder, once it has been checked."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.bundle import SUFFIX, import_bundle

    if not file.is_file():
        raise ProfileError(f"there is no file {file}")
    target = name or file.stem
    if file.suffix == SUFFIX:
        notice(f"Imported as {import_bundle(ProfileStore(), file, target)}")
    elif file.suffix == ".safetensors":
        notice(f"Imported as {ProfileStore().copy(str(file), target)}")
    else:
        raise ProfileError(f"{file} must end in {SUFFIX} or .safetensors")


def run_merge(name: str, other: str, weight: float) -> None:
    """Write another profile's memory over this one's."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.versions import merge

    entry, kept = merge(ProfileStore(), name, other, weight)
    notice(
        f"{other} was merged into {name}, which is at turn {entry.turns} now. By norm, {100 * kept:.0f} % of what "
        f"{name} held was kept; benchmarks/merge.md says how many facts of each survive. "
        f"deltamem profiles log {name} shows what to rewind to."
    )


def run_log(name: str, as_json: bool) -> None:
    """The states that led to the present one, the latest first; those of other lines after them."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.versions import past

    profile, history = past(ProfileStore(), name)
    line = history.line(profile.info.entry)
    aside = [e for e in history.entries.values() if e not in line]
    if as_json:
        write_json({
            "head": profile.info.entry,
            "entries": [e.to_dict() | {"on_line": e in line} for e in sorted(history.entries.values(), key=_number)],
        })  # fmt: skip
        return
    if not line:
        notice("No history yet; it begins with the next turn.")
    rows = [(e.turns, e.tokens, e.kind, e.time, f"{100 * e.change:.1f} %", e.label) for e in reversed(line)]
    if rows:
        table(("turn", "tokens", "by", "when", "changed", "label"), rows, right=("turn", "tokens", "changed"))
    if aside:
        notice(f"{len(aside)} further states lie on other lines (undone or rewound from); --json shows them.")


def _number(entry: Any) -> int:
    number: int = entry.id
    return number


def run_rewind(name: str, to: str) -> None:
    """Go back, or forward, to a turn or a label."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.versions import rewind

    entry = rewind(ProfileStore(), name, to)
    notice(f"Profile {name} is at turn {entry.turns} again" + (f" ({entry.label})." if entry.label else "."))


def run_branch(name: str, target: str, to: str | None) -> None:
    """Begin a profile where another one is or was."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.versions import branch

    notice(f"Profile {target} begins there: {branch(ProfileStore(), name, target, to)}")


def run_tag(name: str, label: str) -> None:
    """Name the present state."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.versions import tag

    notice(f"Turn {tag(ProfileStore(), name, label).turns} of {name} is called {label!r} now.")


def run_prune(name: str, keep: int) -> None:
    """Let go of the past."""
    from deltamem.profiles import ProfileStore
    from deltamem.profiles.versions import prune

    notice(f"{prune(ProfileStore(), name, keep)} states of {name} were let go.")
