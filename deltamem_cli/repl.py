"""The REPL: a prompt with history and completion, commands that begin with a slash, replies as they are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML, AnyFormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from deltamem.errors import DeltaMemError
from deltamem.paths import data_dir, private_dir, user_path
from deltamem.session import TurnFinished
from deltamem_cli.exhausted import guard_memory
from deltamem_cli.replies import show_reply
from deltamem_cli.signals import stopping
from deltamem_cli.terminal import counted, fail, notice, pairs, quiet_keys, show_writes

_MODES = ("on", "read", "off")


class Repl:
    """A person's chat.

    Args:
        chat: an open `ProfileChat`.
        plain: show replies as plain text rather than Markdown.
    """

    def __init__(self, chat: Any, plain: bool = False) -> None:
        self.chat, self.plain = chat, plain
        self.last: TurnFinished | None = None
        self.last_message: str | None = None
        self.commands: dict[str, Callable[[str], bool | None]] = {
            name.removeprefix("do_"): method
            for name, method in inspect.getmembers(self, inspect.ismethod)
            if name.startswith("do_")
        }

    def run(self) -> None:
        """Until the person leaves."""
        self._greet()
        prompt: PromptSession[str] = PromptSession(
            history=_history(),
            completer=_SlashCompleter(self),
            complete_style=CompleteStyle.MULTI_COLUMN,
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            bottom_toolbar=self._toolbar,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="... ",
        )
        while True:
            try:
                text = prompt.prompt("> ").strip()
            except KeyboardInterrupt:
                notice("Ctrl-D or /exit leaves.")
                continue
            except EOFError:
                break
            if not text:
                continue
            try:
                if self._handle(text):
                    break
            except DeltaMemError as error:
                fail(str(error))
            except KeyboardInterrupt:
                notice("Stopped; the turn was taken back.")
        if self.chat.path is not None and self.chat.turns and not self.chat.read_only:
            notice(f"Memory is kept in {self.chat.path}")

    def _handle(self, text: str) -> bool:
        """One input; true when the person wants to leave."""
        if not text.startswith("/"):
            self._turn(text)
            return False
        name, _, rest = text[1:].partition(" ")
        command = self.commands.get(name.lower())
        if command is None:
            raise DeltaMemError(f"there is no command /{name}; /help lists them (a message can't begin with a slash)")
        return bool(command(rest.strip()))

    def _turn(self, text: str) -> None:
        self.last_message = text
        with stopping(self.chat.session), quiet_keys():
            finished = show_reply(guard_memory(self.chat, self.chat.send(text)), self.plain)
        if finished is not None:
            self.last = finished
            if finished.stopped == "interrupted":
                notice("(stopped; what was said is kept)")
            elif finished.stopped == "length":
                notice(f"(cut at {finished.reply_tokens} tokens; --max-tokens allows more)")

    def _greet(self) -> None:
        chat = self.chat
        memory = "no memory" if chat.memory is None else f"adapter {chat.adapter}"
        notice(f"{chat.backbone.name} on {chat.backbone.device.type}, {memory}. /help lists commands, Ctrl-D leaves.")
        if chat.memory is not None:
            came = f"{counted(chat.turns, 'turn')} remembered" if chat.turns else "nothing remembered yet"
            notice(f"Profile {chat.profile_name}: {came}" + (", read-only" if chat.read_only else "") + ".")

    def _toolbar(self) -> AnyFormattedText:
        chat, session = self.chat, self.chat.session
        speed = f"{self.last.tokens_per_second:.1f} tokens/s" if self.last else "- tokens/s"
        return HTML(" profile <b>{}</b>  turns {}  memory <b>{}</b>  window {}/{}  {} ").format(
            chat.profile_name or "-", chat.turns, session.mode, session.window_tokens, session.context, speed
        )

    # Commands. The first line of a docstring is its help.

    def do_help(self, _: str) -> None:
        """List the commands."""
        rows = [(f"/{name}", inspect.getdoc(method) or "") for name, method in sorted(self.commands.items())]
        pairs(rows)
        notice("Enter sends; Alt-Enter or Ctrl-J starts a new line. Ctrl-C stops a reply.")

    def do_profile(self, rest: str) -> None:
        """Show the profile in use, or go on with another: /profile NAME"""
        if rest:
            self.chat.open_profile(rest)
            notice(f"Profile {rest}: {counted(self.chat.turns, 'turn')} remembered.")
        elif self.chat.profile is None:
            notice("No profile: this backbone has no adapter.")
        else:
            info = self.chat.profile.info
            pairs([("profile", self.chat.profile_name), ("file", self.chat.path), ("turns", info.turns),
                   ("tokens written", info.tokens), ("created", info.created), ("updated", info.updated)])  # fmt: skip

    def do_profiles(self, _: str) -> None:
        """List all profiles."""
        from deltamem_cli.profiles import run_list

        run_list(False)

    def do_save(self, rest: str) -> None:
        """Save now (every turn is saved anyway), or a copy: /save NAME"""
        path = self.chat.save(rest or None)
        notice(f"Saved {path}" if path else "There is no profile to save.")

    def do_memory(self, rest: str) -> None:
        """Show or set what turns do with memory: /memory on, read or off"""
        if rest:
            if rest not in _MODES:
                raise DeltaMemError(f"/memory takes {', '.join(_MODES)}, not {rest!r}")
            if rest == "on" and self.chat.read_only:
                raise DeltaMemError("this chat was opened with --read-only")
            self.chat.session.mode = rest
        notice(f"Memory is {self.chat.session.mode}.")

    def do_system(self, rest: str) -> None:
        """Set the system prompt: /system TEXT (without text: the template's own)"""
        try:
            self.chat.session.set_system(rest or None)
        except ValueError as error:
            raise DeltaMemError(str(error)) from None
        notice("The system prompt holds from the next turn on.")

    def do_stats(self, _: str) -> None:
        """Show figures of the last turn."""
        if self.last is None:
            notice("No turn yet.")
            return
        turn = self.last
        pairs([
            ("prompt", f"{turn.prompt_tokens} tokens in {turn.prompt_seconds:.2f} s"),
            ("reply", f"{turn.reply_tokens} tokens, {turn.tokens_per_second:.1f} a second"),
            ("written", f"{turn.written_tokens} tokens"),
            ("state changed by", f"{100 * turn.state_change:.1f} %"),
            ("window", f"{turn.window_tokens} of {turn.context} tokens"),
        ])  # fmt: skip

    def do_inspect(self, rest: str) -> None:
        """Show what the last turn wrote and what is in the memory, or one layer: /inspect LAYER"""
        from deltamem_cli.inspect_state import show_heads

        session = self.chat.session
        if session.state is None:
            raise DeltaMemError("there is no memory to inspect")
        if rest and not rest.isdigit():
            raise DeltaMemError("/inspect takes a layer number")
        if session.writes is not None and not rest:
            show_writes(session.writes.tokens)
        before = session.state_before or session.state
        show_heads(session.state.matrices(), before.matrices(), session.state.layers, int(rest) if rest else None)

    def do_forget(self, _: str) -> None:
        """Go on with an empty memory; /undo or deltamem profiles rewind brings the old one back."""
        if self.chat.memory is None:
            raise DeltaMemError("there is no memory to empty")
        if self.chat.read_only:
            raise DeltaMemError("this chat was opened with --read-only")
        answer = PromptSession[str]().prompt(f"Empty the memory of profile {self.chat.profile_name}? [y/N] ")
        if answer.strip().lower() in ("y", "yes"):
            self.chat.forget()
            notice("The memory is empty.")
        else:
            notice("Nothing was changed.")

    def do_clear(self, _: str) -> None:
        """Clear the conversation from the window; the memory stays."""
        self.chat.session.clear_window()
        notice("The window is empty; only the memory is left of what was said.")

    def do_undo(self, rest: str) -> None:
        """Take the last turn back, from window and memory, or more: /undo N"""
        if rest and not (rest.isdigit() and int(rest)):
            raise DeltaMemError("/undo takes a number of turns")
        taken = self.chat.undo(int(rest or 1))
        if taken > 1:
            notice(f"The last {taken} turns are taken back; the window is empty. /redo brings them back one by one.")
        else:
            notice("The last turn is taken back; /redo brings it back." if taken else "There is no turn to take back.")

    def do_redo(self, _: str) -> None:
        """Bring back what /undo took."""
        if self.chat.redo():
            notice(f"Back at turn {self.chat.turns}; the window is empty.")
        else:
            notice("There is nothing to bring back.")

    def do_log(self, _: str) -> None:
        """Show the turns of this profile that can be gone back to."""
        from deltamem_cli.profiles import run_log

        if self.chat.profile_name is None or self.chat.path is None or not self.chat.path.exists():
            raise DeltaMemError("there is no history yet")
        run_log(self.chat.profile_name, False)

    def do_scratch(self, _: str) -> None:
        """Go on without writing anything; /memory on ends it."""
        if self.chat.memory is None:
            raise DeltaMemError("there is no memory to leave alone")
        self.chat.session.mode = "read"
        notice("From here on nothing is written. /memory on writes again.")

    def do_retry(self, _: str) -> None:
        """Take the last turn back and say it again."""
        if self.last_message is None or not self.chat.undo():
            raise DeltaMemError("there is no turn to try again")
        self._turn(self.last_message)

    def do_remember(self, rest: str) -> None:
        """Read a text file into the memory: /remember FILE"""
        from deltamem_cli.remember import remember_file

        if not rest:
            raise DeltaMemError("/remember takes a file name")
        tokens = remember_file(self.chat, user_path(rest))
        notice(f"Read {tokens} tokens of {rest} into the memory.")

    def do_exit(self, _: str) -> bool:
        """Leave."""
        return True

    do_quit = do_exit


def _history() -> FileHistory:
    path = private_dir(data_dir()) / "history"
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter and Ctrl-J start a new line; a paste keeps its lines."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _SlashCompleter(Completer):
    """Completes commands, and profile names and modes after those that take one."""

    def __init__(self, repl: Repl) -> None:
        self._repl = repl

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            for command in sorted(self._repl.commands):
                if command.startswith(name):
                    yield Completion("/" + command, start_position=-len(text))
            return
        options = {"profile": self._repl.chat.store.names, "memory": lambda: _MODES}.get(name, tuple)()
        for option in options:
            if option.startswith(rest):
                yield Completion(option, start_position=-len(rest))
