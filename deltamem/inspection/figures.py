"""Pictures of a state: every matrix, its way through the turns, and where it was written. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltamem.inspection.heads import Matrices
from deltamem.inspection.overview import Moment
from deltamem.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 10


def matrices_figure(matrices: Matrices, layers: Sequence[int]) -> Figure:
    """Every layer's matrices as heat maps on one scale; heads stand under one another.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    count, heads = matrices.shape[:2]
    columns = min(_COLUMNS, count)
    rows = ceil(count / columns) * heads
    figure = new_figure(1.15 * columns, 1.3 * rows + 0.5)
    peak = float(np.abs(matrices).max()) or 1.0
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    shown: Any = None
    for i, layer in enumerate(layers):
        for head in range(heads):
            axes = grid[(i // columns) * heads + head][i % columns]
            shown = axes.imshow(matrices[i, head], cmap="RdBu_r", vmin=-peak, vmax=peak)
            axes.set_title(f"{layer}" if heads == 1 else f"{layer}.{head}", fontsize=8)
    figure.colorbar(shown, ax=grid.ravel().tolist(), shrink=0.6)
    figure.suptitle("state by layer: rows are value indices, columns key indices", fontsize=9)
    return figure


def drift_figure(moments: Sequence[Moment]) -> Figure:
    """Norm, change and directions in use over the turns.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(11, 2.8)
    x = range(len(moments))
    for axes, name, title in zip(
        figure.subplots(1, 3),
        ("norm", "change", "effective_rank"),
        ("norm of the state", "change by the turn, relative", "directions in use, mean"),
        strict=True,
    ):
        axes.plot(x, [getattr(m, name) for m in moments], marker="o", ms=3)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("turn", fontsize=8)
        places = list(x)[:: max(1, len(moments) // 8)]
        axes.set_xticks(places, [str(moments[i].turns) for i in places], fontsize=7)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    return figure


def gates_figure(moments: Sequence[Moment], layers: Sequence[int]) -> Figure | None:
    """Mean write gate by layer and turn; None where no turn says.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    known = [m for m in moments if len(m.gates) == len(layers)]
    if not known:
        return None
    figure = new_figure(11, 3.2)
    axes = figure.subplots()
    picture = axes.imshow(np.array([m.gates for m in known]).T, aspect="auto", cmap="viridis", vmin=0)
    places = range(0, len(known), max(1, len(known) // 20))
    axes.set_xticks(list(places), [str(known[i].turns) for i in places], fontsize=7)
    axes.set_yticks(range(0, len(layers), 4), [str(layers[i]) for i in range(0, len(layers), 4)], fontsize=7)
    axes.set_xlabel("turn", fontsize=8)
    axes.set_ylabel("layer", fontsize=8)
    axes.set_title("mean write gate of a turn's tokens", fontsize=9)
    figure.colorbar(picture, ax=axes)
    return figure


def save_plot(path: Path, matrices: Matrices, layers: Sequence[int]) -> None:
    """The matrices as a picture file; the ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: the file can't be written.
    """
    save_figure(matrices_figure(matrices, layers), path)


def svg(figure: Figure) -> str:
    """A figure as an SVG element to be put into a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    # The page has a title of its own; what is left names no address but that of the SVG language.
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
