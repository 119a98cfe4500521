"""A profile as one HTML page that needs nothing else: no script, no network, no font."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from deltamem.inspection.figures import drift_figure, gates_figure, matrices_figure, svg
from deltamem.inspection.heads import HeadSummary, Matrices
from deltamem.inspection.overview import Moment

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem } td, th { padding: 0.1rem 0.8rem; text-align: right }
td:first-child, th:first-child, td:only-child, .words td { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
svg { max-width: 100%; height: auto } h2 { margin-top: 2rem }
"""


def html_report(
    title: str,
    lines: Sequence[tuple[str, str]],
    matrices: Matrices,
    layers: Sequence[int],
    heads: Sequence[HeadSummary],
    moments: Sequence[Moment],
) -> str:
    """The page.

    Args:
        title: of the page, as text.
        lines: names and values of the summary, as text.
        matrices: the state.
        layers: numbers of its layers.
        heads: its figures.
        moments: its past, the first first.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    parts = [f"<h1>{escape(title)}</h1>", _table((), lines)]
    parts += ["<h2>The state</h2>", svg(matrices_figure(matrices, layers))]
    if len(moments) > 1:
        parts += ["<h2>How it came to be</h2>", svg(drift_figure(moments))]
        gates = gates_figure(moments, layers)
        if gates is not None:
            parts += ["<h2>Where turns were written</h2>", svg(gates)]
    rows = [
        (f"{h.layer}.{h.head}", f"{h.norm:.4f}", f"{h.largest:+.4f}", f"{h.effective_rank:.2f}",
         f"{100 * h.change:.1f} %")
        for h in heads
    ]  # fmt: skip
    parts += [
        "<h2>Layer by layer</h2>",
        _table(("layer.head", "norm", "largest", "effective rank", "last turn"), rows),
    ]
    body = "\n".join(parts)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    kind = "" if columns else ' class="words"'
    return f"<table{kind}>{f'<tr>{head}</tr>' if head else ''}\n{body}</table>"
