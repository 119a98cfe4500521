"""`deltamem bench`: what memory costs with this backbone, adapter and device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltamem.errors import DataError
from deltamem_cli.terminal import bars, notice, table, write_json


def run_bench(
    backbone_name: str | None,
    adapter: str | None,
    lengths: str,
    decode: int,
    repeats: int,
    plot: Path | None,
    as_json: bool,
    device: str,
    dtype: str,
    quantize: str,
) -> None:
    """Measure and show."""
    import torch

    from deltamem.backbones.progress import Progress
    from deltamem.benchmarking import measure
    from deltamem.config import DeltaMemConfig
    from deltamem.memory import DeltaMemory
    from deltamem.pictures import require_matplotlib
    from deltamem_cli.opening import dtype_of, open_backbone

    try:
        tokens = [int(part) for part in lengths.split(",")]
    except ValueError:
        tokens = []
    if not tokens or min(tokens) < 1:
        raise DataError(f"--lengths takes numbers with commas between them, not {lengths!r}")
    if plot is not None:
        require_matplotlib()
    backbone = open_backbone(backbone_name, device, quantize, dtype_of(dtype))
    limit = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max(tokens) + decode > limit:
        raise DataError(f"{backbone.name} takes {limit} tokens; {max(tokens)} and {decode} to decode are more")
    chosen = adapter or backbone.adapter
    if chosen is None:
        notice("This backbone has no adapter; an untrained one costs the same and is measured.")
        memory = DeltaMemory.attach(backbone.model, DeltaMemConfig(delta_heads=("q", "o")))
    else:
        memory = DeltaMemory.from_pretrained(backbone.model, chosen)
    with bars() as show:
        rows = list(
            measure(
                backbone.model,
                memory,
                tokens,
                decode,
                repeats,
                report=lambda stage, done, total: show(Progress(stage, done, total)),
            )
        )
    settings = {
        "backbone": backbone.name,
        "adapter": chosen,
        "quantization": backbone.quantization,
        "dtype": str(backbone.model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(backbone.device)
        if backbone.device.type == "cuda"
        else str(backbone.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": repeats,
        "decoded": decode,
    }
    if as_json:
        write_json({"settings": settings, "rows": [row.to_dict() for row in rows]})
    else:
        _show(rows)
    if plot is not None:
        _plot(rows, plot)
        notice(f"The plot is in {plot}.")


def _show(rows: Sequence[Any]) -> None:
    columns = ("prompt tokens", "what", "frozen", "with memory", "ratio")
    lines = []
    for row in rows:
        for name, cost, unit in (
            ("prompt", row.prompt, "ms"),
            ("a token", row.decode, "ms"),
            ("peak", row.peak, "MiB"),
        ):
            if cost.frozen is not None:
                ratio = f"{cost.ratio:.2f}x" if cost.ratio is not None else "-"
                lines.append((row.tokens, name, f"{cost.frozen:.1f} {unit}", f"{cost.memory:.1f} {unit}", ratio))
    table(columns, lines, right=("prompt tokens", "frozen", "with memory", "ratio"))


def _plot(rows: Sequence[Any], path: Path) -> None:
    from deltamem.pictures import new_figure, save_figure

    figure = new_figure(9, 3.8)
    for axes, name, title in zip(
        figure.subplots(1, 2), ("prompt", "decode"), ("prompt, ms", "decoding, ms a token"), strict=True
    ):
        for mode in ("frozen", "memory"):
            axes.plot([r.tokens for r in rows], [getattr(getattr(r, name), mode) for r in rows], marker="o", label=mode)
        axes.set_title(title)
        axes.set_xlabel("prompt tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)
