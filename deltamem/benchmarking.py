"""What memory costs on this machine: prompt and decode time and peak memory, with it and without, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from deltamem.memory import DeltaMemory

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Cost:
    """One quantity, frozen and with memory.

    Attributes:
        frozen: median over repeats.
        memory: likewise.
        ratio: median of the ratios of neighbouring repeats; None where nothing was measured.
    """

    frozen: float | None
    memory: float | None
    ratio: float | None


@dataclass(frozen=True)
class Row:
    """What a prompt of some length costs.

    Attributes:
        tokens: length of the prompt.
        prompt: milliseconds to take it in, writing.
        decode: milliseconds a token after it, batch 1, writing.
        peak: MiB at the peak over the weights, where the device can tell; prompt and decode together.
    """

    tokens: int
    prompt: Cost
    decode: Cost
    peak: Cost

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure(
    model: Any,
    memory: DeltaMemory,
    lengths: Sequence[int],
    decode_tokens: int = 32,
    repeats: int = 5,
    seed: int = 0,
    report: Report = lambda *_: None,
) -> Iterator[Row]:
    """Time the frozen backbone and the same one with memory, turn about, after a warm-up of each.

    Args:
        model: the backbone.
        memory: attached to it.
        lengths: prompts, in tokens.
        decode_tokens: tokens made after each prompt.
        repeats: of each measurement.
        seed: of the random prompt.
        report: gets progress.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    total, done = len(lengths) * (repeats + 1), 0
    device = next(model.parameters()).device
    modes: dict[str, Callable[[], AbstractContextManager[Any]]] = {"frozen": memory.disabled, "memory": memory.writing}
    for length in lengths:
        ids = torch.randint(0, vocabulary, (1, length), generator=generator).to(device)
        found: dict[str, list[tuple[float, float, float | None]]] = {name: [] for name in modes}
        for repeat in range(repeats + 1):
            report(f"{length} tokens", done, total)
            for name, mode in modes.items():
                memory.reset()
                with torch.inference_mode(), mode():
                    once = _once(model, ids, decode_tokens)
                if repeat:
                    found[name].append(once)
            done += 1
        yield Row(length, *(_cost(found, i) for i in range(3)))
    report("measuring", total, total)
    memory.reset()


def _once(model: Any, ids: Tensor, decode_tokens: int) -> tuple[float, float, float | None]:
    with _peak(ids.device) as peak:
        cache = DynamicCache(config=model.config)
        began = _now(ids.device)
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        prompted = _now(ids.device)
        for _ in range(decode_tokens):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        decoded = _now(ids.device)
    return 1000 * (prompted - began), 1000 * (decoded - prompted) / max(1, decode_tokens), peak[0]


def _cost(found: dict[str, list[tuple[float, float, float | None]]], i: int) -> Cost:
    frozen, ours = ([row[i] for row in found[name]] for name in ("frozen", "memory"))
    pairs = [(a, b) for a, b in zip(frozen, ours, strict=True) if a is not None and b is not None]
    if not pairs:
        return Cost(None, None, None)
    ratio = statistics.median(b / a for a, b in pairs) if all(a > 0 for a, _ in pairs) else None
    return Cost(statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float | None]]:
    """MiB allocated at the peak over what there was before; None where it can't be told."""
    found: list[float | None] = [None]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found[0] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        return
    before_cpu = _resident(reset=True)
    yield found
    after = _resident()
    if before_cpu is not None and after is not None:
        found[0] = max(0.0, after - before_cpu)


def _resident(reset: bool = False) -> float | None:
    """The process's largest resident size in MiB since the last reset, on Linux; elsewhere None."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    return None
