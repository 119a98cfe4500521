"""`deltamem chat`: opens the chat, and answers a prompt, piped input, or a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deltamem.errors import DeltaMemError
from deltamem_cli.exhausted import guard_memory
from deltamem_cli.signals import leaving, stopping
from deltamem_cli.terminal import is_terminal, notice, write, write_json


@dataclass(frozen=True)
class ChatOptions:
    """The options of `deltamem chat`, as in its help."""

    prompt: str | None
    profile: str
    backbone: str | None
    adapter: str | None
    system: str | None
    memory: str
    read_only: bool
    lines: bool
    json: bool
    plain: bool
    context: int | None
    history: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    max_tokens: int | None
    device: str
    quantize: str
    compile: str


def run_chat(options: ChatOptions) -> None:
    """Chat as the options and the two ends of the pipe ask for."""
    messages = _messages(options)
    with open_chat(options, interactive=messages is None) as chat:
        if messages is None:
            from deltamem_cli.repl import Repl

            Repl(chat, plain=options.plain).run()
            return
        for message in messages:
            _answer(chat, message, options.json)


def _messages(options: ChatOptions) -> Iterator[str] | list[str] | None:
    """What to answer, or None for a REPL: the prompt, piped input as one message, or as a turn a line."""
    if options.lines:
        if options.prompt is not None:
            raise DeltaMemError("--lines reads turns from standard input; leave the prompt out")
        return (line.rstrip("\r\n") for line in sys.stdin if line.strip())
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if options.prompt is None and not piped.strip():
        if is_terminal() and not options.json:
            return None
        raise DeltaMemError("nothing to answer: give a prompt, pipe text in, or use a terminal")
    parts = [part for part in (piped.strip("\n"), options.prompt) if part and part.strip()]
    if not parts:
        raise DeltaMemError("the prompt is empty")
    return ["\n\n".join(parts)]


@contextmanager
def open_chat(options: ChatOptions, interactive: bool) -> Iterator[Any]:
    """Load what the options name and open the profile."""
    from deltamem.profile_chat import ProfileChat
    from deltamem.profiles import ProfileStore
    from deltamem.session import Sampling
    from deltamem_cli.opening import adapter_for, context_for, open_backbone

    store = ProfileStore()
    path = store.path(options.profile)  # a bad name is told before anything is loaded
    if options.read_only and not path.exists():
        store.existing(options.profile)
    try:
        sampling = Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
            max_tokens=options.max_tokens,
        )
    except ValueError as error:
        raise DeltaMemError(str(error)) from None
    backbone = open_backbone(options.backbone, options.device, options.quantize)
    adapter = adapter_for(backbone, options.adapter, path)
    if adapter is not None and interactive and not path.exists():
        notice(f"New profile {options.profile!r}, to be kept in {path}. Adapter: {adapter}.")
    try:
        chat = ProfileChat(
            backbone,
            adapter,
            options.profile if adapter is not None else None,
            read_only=options.read_only,
            store=store,
            mode=options.memory,  # type: ignore[arg-type]
            system=options.system,
            context=context_for(backbone, options.context),
            sampling=sampling,
            history=options.history,
            record=_records(options.compile, backbone.device.type),
        )
    except ValueError as error:
        raise DeltaMemError(str(error)) from None
    with leaving(), chat:
        yield chat
        if chat.recorded is not None and chat.recorded.failure is not None:
            notice(f"--compile on had no effect here: {chat.recorded.failure}")


def _records(compile: str, device: str) -> bool:
    """Whether tokens are recorded. "auto" does not do so before somebody has chatted on a GPU.

    Raises:
        DeltaMemError: it was asked for, and this is no GPU that can.
    """
    if compile == "on" and device != "cuda":
        raise DeltaMemError(f"--compile on records what a CUDA GPU does, and this runs on {device}; leave it out")
    return compile == "on"


def _answer(chat: Any, message: str, as_json: bool) -> None:
    """One turn to standard output: the reply and nothing else, or one JSON object."""
    from deltamem.session import TextChunk, TurnFinished

    with stopping(chat.session):
        for event in guard_memory(chat, chat.send(message)):
            if isinstance(event, TextChunk) and not as_json:
                write(event.text)
            elif isinstance(event, TurnFinished):
                if as_json:
                    write_json({"prompt": message, **event.to_dict(), "profile": chat.profile_name})
                else:
                    write("\n")
