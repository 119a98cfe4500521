"""`deltamem remember`: text and saved chats into a profile's memory, in bounded memory."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from deltamem.errors import DataError, DeltaMemError
from deltamem_cli.exhausted import guard_memory
from deltamem_cli.signals import leaving
from deltamem_cli.terminal import bars, notice, write_json

_BLOCK = 4000
"""Characters read at a time; a paragraph longer than this is split at a space."""


def run_remember(
    files: list[Path],
    profile: str,
    backbone_name: str | None,
    adapter: str | None,
    context: int | None,
    device: str,
    quantize: str,
    as_json: bool,
) -> None:
    """Read files into a profile, one after another, and say how much went in."""
    from deltamem.profile_chat import ProfileChat
    from deltamem.profiles import ProfileStore
    from deltamem_cli.opening import adapter_for, context_for, open_backbone

    for file in files:
        if str(file) != "-" and not file.is_file():
            raise DataError(f"there is no file {file}")
    store = ProfileStore()
    path = store.path(profile)
    backbone = open_backbone(backbone_name, device, quantize)
    chosen = adapter_for(backbone, adapter, path)
    if chosen is None:
        raise DeltaMemError(f"{backbone.name} runs without an adapter, so there is no memory to read into")
    reading = ProfileChat(backbone, chosen, profile, store=store, context=context_for(backbone, context))
    with leaving(), reading as chat:
        for file in files:
            tokens = remember_file(chat, file)
            if as_json:
                write_json({"file": str(file), "tokens": tokens, "profile": profile, "turns": chat.turns})
            else:
                notice(f"Read {tokens} tokens of {file} into profile {profile}.")


def remember_file(chat: Any, file: Path) -> int:
    """Read one file into an open chat's memory; returns the tokens written. Saved block by block."""
    from deltamem.backbones.progress import Progress
    from deltamem.session import TurnFinished

    if chat.memory is None or chat.session.mode != "on":
        raise DeltaMemError("the memory is not being written, so nothing can be read into it")
    tokens = done = 0
    with bars() as report, _open(file) as source:
        total = file.stat().st_size if str(file) != "-" else None
        try:
            for block in blocks(source, file):
                for event in guard_memory(chat, chat.ingest(block)):
                    if isinstance(event, TurnFinished):
                        tokens += event.written_tokens
                done += len(block.encode("utf-8", "replace"))
                report(Progress(f"reading {file.name}", min(done, total) if total else done, total))
        except UnicodeDecodeError:
            raise DataError(f"{file} is not UTF-8 text") from None
    return tokens


def _open(file: Path) -> TextIO:
    if str(file) == "-":
        return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
    try:
        return file.open(encoding="utf-8")
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}") from None


def blocks(source: TextIO, file: Path) -> Iterator[str]:
    """A file as messages: paragraphs of a text, or what was said in a saved chat (a `.jsonl`)."""
    if file.suffix == ".jsonl":
        yield from _chat_messages(source, file)
        return
    rest = ""
    while block := source.read(_BLOCK):
        rest += block
        *whole, rest = rest.split("\n\n")
        yield from (p.strip() for p in whole if p.strip())
        while len(rest) > _BLOCK:
            cut = rest.rfind(" ", 0, _BLOCK)
            cut = cut if cut > 0 else _BLOCK
            yield rest[:cut]
            rest = rest[cut:].lstrip(" ")
    if rest.strip():
        yield rest.strip()


def _chat_messages(source: TextIO, file: Path) -> Iterator[str]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            messages = data.get("messages", [data])
            said = [m["content"] for m in messages if m["role"] != "system"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(
                f'{file}, line {number}: expected {{"messages": [...]}} or {{"role": ..., "content": ...}}'
            ) from None
        if not all(isinstance(text, str) for text in said):
            raise DataError(f"{file}, line {number}: content must be text")
        yield from (text for text in said if text.strip())
