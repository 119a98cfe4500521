"""The one place that knows colours, tables, bars, and how to show text that nobody vouches for.

Results go to standard output, notices and bars to standard error. Text that a model, a file or a user made is shown
as text: control characters are taken out first, and Rich's markup and links are off for it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from deltamem.backbones.progress import Report

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, soft_wrap=True)

# C0 and C1 controls but for newline and tab, and the invisible marks that reorder what is on the screen.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Text without anything a terminal would act on."""
    return _UNSAFE.sub("", text).encode("utf-8", "replace").decode("utf-8")


def is_terminal() -> bool:
    """Whether a person is at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def write(text: str) -> None:
    """Untrusted text to standard output, as it is, at once."""
    sys.stdout.write(clean(text))
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """One JSON value on a line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def notice(text: str, style: str = "dim") -> None:
    """A line for the person, on standard error."""
    err.print(Text(clean(text), style=style))


def counted(count: int, what: str) -> str:
    """So many of something: 1 turn, 2 turns."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def fail(text: str) -> None:
    """An error, in one line, on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), clean(" ".join(text.split()))))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table on standard output."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        view.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(clean(str(cell))) for cell in row))
    out.print(view, soft_wrap=False)


def pairs(items: Sequence[tuple[str, object]]) -> None:
    """Names and values in two columns on standard output."""
    view = Table(box=None, pad_edge=False, show_header=False)
    view.add_column(style="bold")
    view.add_column(overflow="fold")
    for name, value in items:
        view.add_row(name, Text(clean(str(value))))
    out.print(view, soft_wrap=False)


def heatmap(rows: Sequence[Sequence[float]], title: str) -> None:
    """A matrix as coloured cells: blue below zero, red above, the strength by magnitude."""
    peak = max((abs(x) for row in rows for x in row), default=0.0) or 1.0
    out.print(Text(title, style="bold"))
    for row in rows:
        line = Text("  ")
        for value in row:
            strength = abs(value) / peak
            base = (200, 40, 40) if value > 0 else (40, 80, 200)
            shade = [round(245 - (245 - c) * strength) for c in base]
            ink = "white" if strength > 0.55 else "black"
            line.append(f"{value:7.3f} ", style=f"{ink} on rgb({shade[0]},{shade[1]},{shade[2]})")
        out.print(line)
    out.print(Text(f"  largest magnitude {peak:.4g}; rows are value indices, columns key indices", style="dim"))


def show_writes(tokens: Sequence[tuple[str, float]]) -> None:
    """What a turn wrote: its text, each token on a ground the redder the wider its write gate stood open."""
    text = Text()
    for piece, gate in tokens:
        shade = [round(245 - (245 - c) * gate) for c in (200, 40, 40)]
        ink = "white" if gate > 0.55 else "black"
        text.append(clean(piece), style=f"{ink} on rgb({shade[0]},{shade[1]},{shade[2]})")
    out.print(Text("written by the last turn (the redder, the wider the write gate)", style="bold"))
    out.print(text)
    widest = sorted(tokens, key=lambda token: -token[1])[:5]
    out.print(Text("widest: " + ", ".join(f"{clean(t).strip()!r} {g:.2f}" for t, g in widest), style="dim"))
    out.print()


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Keys pressed while a reply is made are not echoed into it; they wait for the prompt. Ctrl-C still works."""
    try:
        import termios
    except ImportError:  # not a POSIX terminal
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    quiet = termios.tcgetattr(handle)
    quiet[0] &= ~termios.ICRNL  # Enter stays Enter, and does not become a new line in the next message
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(handle, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may have been closed meanwhile
            termios.tcsetattr(handle, termios.TCSADRAIN, before)


@contextmanager
def bars() -> Iterator[Report]:
    """A bar on standard error for each stage of long work; yields the callback to report to."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from deltamem.backbones.progress import Progress as Step

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as view:
        tasks: dict[str, Any] = {}

        def report(step: Step) -> None:
            if step.stage not in tasks:
                for done in tasks.values():
                    view.update(done, visible=False)
                tasks[step.stage] = view.add_task(step.stage, total=step.total, amount="")
                if not err.is_terminal:
                    notice(step.stage)
            amount = ""
            if step.total and step.unit == "bytes":
                amount = f"{step.done / 1e6:.0f} of {step.total / 1e6:.0f} MB"
            elif step.total:
                amount = f"{step.done} of {step.total}"
            view.update(tasks[step.stage], completed=step.done, total=step.total, amount=amount)

        yield report
