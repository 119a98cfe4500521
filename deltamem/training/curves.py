"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from deltamem.pictures import new_figure, save_figure
from deltamem.training.metrics import read_metrics

CURVES_FILE = "curves.png"


def draw_curves(directory: Path) -> Path | None:
    """Loss, accuracy, parts of the loss and held-out recall over steps; None where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    lines = read_metrics(directory)
    if not lines:
        return None
    steps = [line["step"] for line in lines]
    figure = new_figure(12, 4)
    loss, right, parts = figure.subplots(1, 3)
    for axes, key, title in ((loss, "loss", "loss"), (right, "accuracy", "share of value tokens that are right")):
        values = [line[key] for line in lines]
        axes.plot(steps, values, alpha=0.25, color="C0")
        axes.plot(steps, _smooth(values), color="C0", label="training, smoothed")
        axes.set_title(title)
    for stage in sorted({line["stage"] for line in lines})[1:]:
        right.axvline(next(line["step"] for line in lines if line["stage"] == stage), color="grey", lw=0.6, ls=":")
    for i, facts in enumerate(sorted({f for line in lines for f in line["recall"]}, key=int), 1):
        asked = [(line["step"], line["recall"][facts]["named"]) for line in lines if facts in line["recall"]]
        right.plot(*zip(*asked, strict=True), marker="o", ms=3, color=f"C{i}", label=f"held out, {facts} facts")
    right.set_ylim(0, 1.02)
    right.legend(fontsize=8)
    for i, name in enumerate(sorted({n for line in lines for n in line.get("parts", {})})):
        own = [(line["step"], line["parts"][name]) for line in lines if name in line.get("parts", {})]
        parts.plot([s for s, _ in own], _smooth([v for _, v in own]), color=f"C{i}", label=name)
    parts.set_title("parts of the loss, smoothed")
    parts.set_yscale("log")
    parts.legend(fontsize=8)
    for axes in (loss, right, parts):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    path = directory / CURVES_FILE
    save_figure(figure, path)
    return path


def _smooth(values: Sequence[float], memory: float = 0.95) -> list[float]:
    out: list[float] = []
    level = total = 0.0
    for value in values:
        level, total = memory * level + (1 - memory) * value, memory * total + (1 - memory)
        out.append(level / total)
    return out
