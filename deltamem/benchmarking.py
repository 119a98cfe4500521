"""What memory costs on this machine: prompt and decode time and peak memory, with it and without, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from deltamem.memory import DeltaMemory

Report = Callable[[str, int, int], None]
Mode = Callable[[], AbstractContextManager[Any]]


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
        peak: MiB at the peak over the weights, where the device can tell; of the prompt.
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
    replying: list[Mode] = [memory.disabled, memory.writing]
    for length in lengths:
        # As in a chat: a prompt is told, and what follows is a reply.
        said = partial(memory.writing, reads=torch.zeros(1, length, dtype=torch.bool))
        prompting: list[Mode] = [memory.disabled, said]
        ids = torch.randint(0, vocabulary, (1, length), generator=generator).to(device)
        prompts, tokens, peaks = (_Pairs() for _ in range(3))
        for repeat in range(repeats + 1):
            report(f"{length} tokens", done, total)
            memory.reset()
            with torch.inference_mode():
                once = [_prompt(model, ids, mode) for mode in prompting]
                decoded = _decode(model, [o.cache for o in once], replying, ids[:, -1:], decode_tokens)
            if repeat:
                prompts.add(*(o.milliseconds for o in once))
                peaks.add(*(o.peak for o in once))
                for pair in decoded:
                    tokens.add(*pair)
            done += 1
        yield Row(length, prompts.cost(), tokens.cost(), peaks.cost())
    report("measuring", total, total)
    memory.reset()


class _Prompted(NamedTuple):
    milliseconds: float
    peak: float | None
    cache: DynamicCache


def _prompt(model: Any, ids: Tensor, mode: Mode) -> _Prompted:
    with mode(), _peak(ids.device) as peak:
        cache = DynamicCache(config=model.config)
        began = _now(ids.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        took = 1000 * (_now(ids.device) - began)
    return _Prompted(took, peak[0], cache)


def _decode(
    model: Any,
    caches: Sequence[DynamicCache],
    modes: Sequence[Mode],
    token: Tensor,
    count: int,
) -> list[list[float]]:
    """Milliseconds of each token, in every mode by turns: what slows the machine for a while slows all of them."""
    found = []
    for _ in range(count):
        row = []
        for cache, mode in zip(caches, modes, strict=True):
            began = _now(token.device)
            with mode():
                model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            row.append(1000 * (_now(token.device) - began))
        found.append(row)
    return found


class _Pairs:
    """Neighbouring measurements, frozen and with memory."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []

    def add(self, frozen: float | None, memory: float | None) -> None:
        """One of each; None where it can't be told."""
        if frozen is not None and memory is not None:
            self._pairs.append((frozen, memory))

    def cost(self) -> Cost:
        """Their medians."""
        if not self._pairs:
            return Cost(None, None, None)
        frozen, memory = (statistics.median(column) for column in zip(*self._pairs, strict=True))
        ratio = statistics.median(b / a for a, b in self._pairs) if all(a > 0 for a, _ in self._pairs) else None
        return Cost(frozen, memory, ratio)


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
