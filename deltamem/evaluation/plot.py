"""Recall drawn against the number of facts and against distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltamem.pictures import new_figure, save_figure


def plot_recall(rows: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Draw a panel for every breakdown by a number, or one of bars where there is none.

    Args:
        rows: of `summarise`.
        metric: what to draw.
        path: where to; the ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: the file can't be written.
    """
    panels = _panels(rows)
    figure = new_figure(5.2 * len(panels), 4.2)
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    for axes, (title, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        numeric = all(isinstance(row["slice"].get(title), int) for row in part)
        places = list(dict.fromkeys(row["slice"].get(title, "all") for row in part))
        for i, condition in enumerate(conditions):
            own = [row for row in part if row["condition"] == condition]
            x = [places.index(row["slice"].get(title, "all")) for row in own]
            y = [row[metric]["mean"] for row in own]
            error = [
                [row[metric]["mean"] - row[metric]["low"] for row in own],
                [row[metric]["high"] - row[metric]["mean"] for row in own],
            ]
            if numeric:
                axes.errorbar(x, y, error, marker="o", capsize=2, label=condition)
            else:
                width = 0.8 / len(conditions)
                at = [place + (i - (len(conditions) - 1) / 2) * width for place in x]
                axes.bar(at, y, width, yerr=error, error_kw={"elinewidth": 0.8}, label=condition)
        # A name that is turned ends at its bar, so that long ones side by side do not lie on each other.
        turned = {} if numeric else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(places)), [str(p) for p in places], **turned)
        axes.set_xlabel({"facts": "facts told", "distance": "turns of small talk in between"}.get(title, title))
        axes.set_ylabel(metric)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    save_figure(figure, path)


def _panels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if len(row["slice"]) == 1:
            panels.setdefault(next(iter(row["slice"])), []).append(row)
    return list(panels.items()) or [("", [row for row in rows if not row["slice"]])]
