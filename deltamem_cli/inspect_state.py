"""`deltamem inspect-state`: a profile's state in a few lines, in figures, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deltamem.errors import DataError, ProfileError
from deltamem.inspection import HeadSummary, Matrices, Moment, Overview, matrix_rows, overview, summarize
from deltamem.profiles import Profile, ProfileStore, load_profile
from deltamem.profiles.history import History
from deltamem_cli.terminal import counted, heatmap, notice, out, pairs, table, write_json

_LATELY = 10


@dataclass(frozen=True)
class InspectOptions:
    """What was asked for on the command line."""

    profile: str
    layer: int | None = None
    head: int | None = None
    diff: str | None = None
    turns: bool = False
    report: Path | None = None
    plot: Path | None = None
    json: bool = False


def run_inspect(options: InspectOptions) -> None:
    """Show a profile on disk."""
    if options.diff is not None:
        run_diff(options.diff, options.profile, options.json)
        return
    path = ProfileStore().existing(options.profile)
    profile = load_profile(path)
    _check(profile, options.layer, options.head)
    history = History(History.beside(path), profile)
    if options.turns:
        _show_turns(_moments(history, profile), options.json)
        return
    seen = _overview(history, profile)
    if options.plot is not None or options.report is not None:
        _draw(options, path, profile, seen, history)
        return
    if options.json:
        _write_json(options, path, profile, seen)
        return
    pairs([("profile", str(path)), *_lines(profile, seen)])
    out.print()
    show_heads(profile.matrices, profile.matrices_before, profile.info.layers, options.layer, options.head)


def run_diff(one: str, other: str, as_json: bool) -> None:
    """How far apart two profiles are."""
    from deltamem.profiles.versions import difference

    whole, heads = difference(ProfileStore(), one, other)
    if as_json:
        write_json({"change": whole, "heads": [head.to_dict() for head in heads]})
        return
    table(
        ("layer", "head", "norm", "apart"),
        [(h.layer, h.head, f"{h.norm:.4f}", f"{100 * h.change:.1f} %") for h in heads],
        right=("layer", "head", "norm", "apart"),
    )
    notice(f"{one} and {other} are {100 * whole:.1f} % apart, relative to {other}.")


def show_heads(
    matrices: Matrices, before: Matrices, layers: Sequence[int], layer: int | None = None, head: int | None = None
) -> None:
    """The table of all layers, or the figures and pictures of one.

    Raises:
        ProfileError: there is no such layer or head.
    """
    _check_numbers(layers, matrices.shape[1], layer, head)
    heads = _chosen(summarize(matrices, before, layers), layer, head)
    peak = max((s.norm for s in heads), default=0.0) or 1.0
    rows = [
        (s.layer, s.head, f"{s.norm:.4f}", "█" * round(12 * s.norm / peak), f"{s.largest:+.4f}",
         f"{s.effective_rank:.2f}", f"{100 * s.change:.1f} %")
        for s in heads
    ]  # fmt: skip
    columns = ("layer", "head", "norm", "", "largest", "eff. rank", "last turn")
    table(columns, rows, right=("layer", "head", "norm", "largest", "eff. rank", "last turn"))
    if all(s.norm == 0 for s in heads):
        notice("The memory is empty.")
    if layer is not None or head is not None:
        for s in heads:
            out.print()
            heatmap(matrix_rows(matrices, layers, s.layer, s.head), f"layer {s.layer}, head {s.head}")


# The past


def _moments(history: History, profile: Profile) -> list[Moment]:
    return [
        Moment.of(
            history.matrices(e.id), turns=e.turns, kind=e.kind, time=e.time, change=e.change, gates=e.gates
        )
        for e in history.line(profile.info.entry)
    ]  # fmt: skip


def _overview(history: History, profile: Profile) -> Overview:
    line = history.line(profile.info.entry)
    past, turns = None, 0
    if len(line) > 1:
        entry = line[-1 - min(_LATELY, len(line) - 1)]
        past, turns = history.matrices(entry.id), profile.info.turns - entry.turns
    return overview(profile.matrices, profile.matrices_before, profile.info.layers, past, turns)


def _show_turns(moments: Sequence[Moment], as_json: bool) -> None:
    if as_json:
        write_json([m.to_dict() for m in moments])
        return
    if not moments:
        notice("No history yet; it begins with the next turn.")
        return
    peak = max(m.norm for m in moments) or 1.0
    rows = [
        (m.turns, m.kind, m.time, f"{m.norm:.4f}", "█" * round(12 * m.norm / peak), f"{m.effective_rank:.2f}",
         f"{100 * m.change:.1f} %", f"{sum(m.gates) / len(m.gates):.3f}" if m.gates else "-")
        for m in moments
    ]  # fmt: skip
    columns = ("turn", "by", "when", "norm", "", "eff. rank", "changed", "gate")
    table(columns, rows, right=("turn", "norm", "eff. rank", "changed", "gate"))


# The summary


def _lines(profile: Profile, seen: Overview) -> list[tuple[str, str]]:
    info = profile.info
    lines = [("backbone", info.backbone), ("adapter", info.adapter)]
    if seen.empty:
        return [*lines, ("memory", "empty")]
    lately = f", the last {seen.lately_turns} by {100 * seen.lately:.0f} %" if seen.lately_turns > 1 else ""
    saturated = _saturated(seen, len(info.layers))
    loud = f"layers {_ranges(seen.loud)} stand out (over five times the median norm)" if seen.loud else "none"
    return [
        *lines,
        ("how full", f"{100 * seen.fullness:.0f} %: {seen.used:.1f} of {seen.rank} directions of a layer are in use"),
        (
            "how fresh",
            f"{counted(info.turns, 'turn')}, {counted(info.tokens, 'token')}, last written {_ago(info.updated)}",
        ),
        ("what changed", f"the last turn changed it by {100 * seen.last_turn:.0f} %{lately}"),
        ("saturated", saturated),
        ("out of the ordinary", loud),
    ]


def _saturated(seen: Overview, layers: int) -> str:
    if not seen.saturated:
        return "no layer; every one has directions left"
    which = "all layers" if len(seen.saturated) == layers else f"layers {_ranges(seen.saturated)}"
    return f"{which}: what is new is written over what is old there"


def _ago(when: str) -> str:
    try:
        then = datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return when
    seconds = (datetime.now(timezone.utc) - then).total_seconds()
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{when} ({seconds // size:.0f} {name} ago)"
    return f"{when} (just now)" if seconds >= 0 else when


def _write_json(options: InspectOptions, path: Path, profile: Profile, seen: Overview) -> None:
    info, matrices = profile.info, profile.matrices
    heads = _chosen(summarize(matrices, profile.matrices_before, info.layers), options.layer, options.head)
    value: dict[str, Any] = {
        "profile": options.profile,
        "path": str(path),
        **info.to_dict(),
        "overview": seen.to_dict(),
        "heads": [s.to_dict() for s in heads],
    }
    if options.layer is not None or options.head is not None:
        value["matrices"] = [matrix_rows(matrices, info.layers, s.layer, s.head) for s in heads]
    write_json(value)


def _draw(options: InspectOptions, path: Path, profile: Profile, seen: Overview, history: History) -> None:
    info = profile.info
    if options.plot is not None:
        from deltamem.inspection.figures import save_plot

        save_plot(options.plot, profile.matrices, info.layers)
        notice(f"Drawn to {options.plot}")
    if options.report is not None:
        from deltamem.inspection.report import html_report

        moments = _moments(history, profile)
        heads = summarize(profile.matrices, profile.matrices_before, info.layers)
        page = html_report(
            f"deltamem profile {path.stem}", _lines(profile, seen), profile.matrices, info.layers, heads, moments
        )
        try:
            options.report.write_text(page, encoding="utf-8")
        except OSError as error:
            raise DataError(f"can't write {options.report}: {error.strerror or error}") from None
        notice(f"Written to {options.report}")


# Layers and heads


def _chosen(heads: Sequence[HeadSummary], layer: int | None, head: int | None) -> list[HeadSummary]:
    return [s for s in heads if layer in (None, s.layer) and head in (None, s.head)]


def _check(profile: Profile, layer: int | None, head: int | None) -> None:
    _check_numbers(profile.info.layers, profile.matrices.shape[1], layer, head)


def _check_numbers(layers: Sequence[int], heads: int, layer: int | None, head: int | None) -> None:
    if layer is not None and layer not in layers:
        raise ProfileError(f"there is no layer {layer}; this memory has layers {_ranges(layers)}")
    if head is not None and not 0 <= head < heads:
        raise ProfileError(f"there is no head {head}; this memory has {heads} a layer, counted from 0")


def _ranges(layers: Sequence[int]) -> str:
    whole = len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))
