"""`deltamem inspect-state`: a state in figures, and a layer as a picture in the terminal."""

from __future__ import annotations

from typing import Any

from deltamem.errors import ProfileError
from deltamem_cli.terminal import heatmap, notice, out, pairs, table, write_json


def run_inspect(name: str, layer: int | None, as_json: bool) -> None:
    """Show a profile on disk."""
    from deltamem.inspection import matrix_rows, summarize
    from deltamem.profiles import ProfileStore, load_profile

    path = ProfileStore().existing(name)
    profile = load_profile(path)
    _check_layer(profile.state, layer)
    if as_json:
        rows = [s.to_dict() for s in summarize(profile.state, profile.before) if layer in (None, s.layer)]
        value: dict[str, Any] = {"profile": name, "path": str(path), **profile.info.to_dict(), "heads": rows}
        if layer is not None:
            heads = profile.state.tensor.shape[2]
            value["matrices"] = [matrix_rows(profile.state, layer, head) for head in range(heads)]
        write_json(value)
        return
    info = profile.info
    pairs([("profile", path), ("backbone", info.backbone), ("adapter", info.adapter),
           ("turns", info.turns), ("tokens written", info.tokens), ("updated", info.updated)])  # fmt: skip
    out.print()
    show_summary(profile.state, profile.before, layer)


def show_summary(state: Any, before: Any, layer: int | None) -> None:
    """The table of all layers, or one layer's figures and matrices."""
    from deltamem.inspection import matrix_rows, summarize

    _check_layer(state, layer)
    heads = [s for s in summarize(state, before) if layer in (None, s.layer)]
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
    if layer is not None:
        for head in range(state.tensor.shape[2]):
            out.print()
            heatmap(matrix_rows(state, layer, head), f"layer {layer}, head {head}")


def _check_layer(state: Any, layer: int | None) -> None:
    if layer is not None and layer not in state.layers:
        raise ProfileError(f"there is no layer {layer}; this memory has {_ranges(state.layers)}")


def _ranges(layers: tuple[int, ...]) -> str:
    whole = layers == tuple(range(layers[0], layers[-1] + 1)) if layers else False
    return f"layers {layers[0]} to {layers[-1]}" if whole else f"layers {', '.join(map(str, layers))}"
