"""The REPL through a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from deltamem.profiles import load_profile

READY = "\x1b[?2004h"  # bracketed paste goes on when the prompt takes input


@pytest.fixture
def repl(tmp_path: Path, tiny_backbone: Path, tiny_adapter: Path) -> Iterator[pexpect.spawn]:
    environment = {
        **os.environ,
        "DELTAMEM_HOME": str(tmp_path / "home"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    words = ["-m", "deltamem_cli", "chat", "--profile", "work", "--backbone", str(tiny_backbone),
             "--adapter", str(tiny_adapter), "--temperature", "0", "--max-tokens", "6"]  # fmt: skip
    child = pexpect.spawn(sys.executable, words, env=environment, encoding="utf-8", dimensions=(40, 120), timeout=120)
    child.expect("nothing remembered yet")
    child.expect_exact(READY)
    yield child
    child.close(force=True)


def send(repl: pexpect.spawn, text: str, expect: str) -> None:
    repl.send(text + "\r")
    repl.expect(expect)
    repl.expect_exact(READY)


def test_a_chat_with_commands(repl: pexpect.spawn, tmp_path: Path) -> None:
    send(repl, "hello there", "cut at 6 tokens")
    send(repl, "/stats", "state changed by")
    send(repl, "/inspect 1", "layer 1, head 0")
    send(repl, "/memory read", "Memory is read")
    send(repl, "not written", "cut at 6 tokens")
    send(repl, "/memory on", "Memory is on")
    send(repl, "/nonsense", "there is no command /nonsense")
    send(repl, "/profile other", "Profile other: 0 turns")
    send(repl, "in the other", "cut at 6 tokens")
    send(repl, "/profile work", "Profile work: 1 turn")
    send(repl, "/undo", "The last turn is taken back")
    send(repl, "/undo", "no turn to take back")
    send(repl, "/redo", "Back at turn 1")
    send(repl, "/log", "changed")
    send(repl, "/scratch", "nothing is written")
    send(repl, "/memory on", "Memory is on")
    repl.send("/mem\t")
    repl.expect("ory")
    send(repl, "", "Memory is on")
    repl.send("half a line")
    repl.sendcontrol("c")
    repl.expect("Ctrl-D or /exit leaves")
    repl.expect_exact(READY)
    repl.send("/forget\r")
    repl.expect(r"Empty the memory of profile work\?")
    send(repl, "y", "The memory is empty")
    repl.sendcontrol("d")
    repl.expect(pexpect.EOF)
    repl.wait()
    assert repl.exitstatus == 0
    home = tmp_path / "home"
    assert sorted(p.name for p in (home / "profiles").glob("*.safetensors")) == [
        "other.safetensors",
        "work.safetensors",
    ]
    assert oct((home / "history").stat().st_mode & 0o777) == "0o600"
    assert "hello there" in (home / "history").read_text()


def test_escape_codes_from_a_model_never_reach_the_terminal() -> None:
    from deltamem_cli.terminal import clean

    hostile = "a\x1b]8;;http://evil\x07link\x1b]8;;\x07\x1b[2J\x9b31m\u202eb\r\n\tc[bold]"
    shown = clean(hostile)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
    assert shown.endswith("\n\tc[bold]")


def test_typing_shows_where_things_are(repl: pexpect.spawn) -> None:
    send(repl, "/help", r"/retry")
    send(repl, "/profile", "tokens written")
    repl.sendcontrol("d")
    repl.expect(pexpect.EOF)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_chat_told_to_end_at_the_prompt_leaves_cleanly(repl: pexpect.spawn, number: int, code: int) -> None:
    send(repl, "hello there", "cut at 6 tokens")
    send(repl, "/inspect", "written by the last turn")
    repl.kill(number)
    repl.expect(pexpect.EOF)
    repl.wait()
    assert "Traceback" not in str(repl.before) and (repl.exitstatus, repl.signalstatus) == (code, None)


def test_a_terminal_that_is_closed_during_a_reply_leaves_the_turn_saved(repl: pexpect.spawn, tmp_path: Path) -> None:
    send(repl, "hello there", "cut at 6 tokens")
    repl.send("/exit\r")
    repl.expect(pexpect.EOF)
    environment = {**os.environ, "DELTAMEM_HOME": str(tmp_path / "home"), "TERM": "xterm-256color"}
    words = ["3000" if word == b"6" else word.decode() for word in repl.args[1:]]
    child = pexpect.spawn(sys.executable, words, env=environment, encoding="utf-8", timeout=120)
    child.expect("1 turn remembered")
    child.expect_exact(READY)
    child.send("again\r")
    child.expect("\n.*\n")
    time.sleep(1)  # into the reply
    os.close(child.child_fd)  # the terminal is gone: the kernel sends SIGHUP
    child.closed = True
    deadline = time.monotonic() + 60
    path = tmp_path / "home" / "profiles" / "work.safetensors"
    while load_profile(path).info.turns < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert load_profile(path).info.turns == 2
    _, status = os.waitpid(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
