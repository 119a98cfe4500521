"""Where the time goes that memory costs: timers around each part of it, within the whole model.

    python benchmarks/where_time_goes.py

The small backbone (deltamem models pull smollm2-135m). Prompts and tokens with memory and without, turn about; the
parts are sums over all layers, the rest of the difference is hooks, timers and noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from timing import machine
from transformers import DynamicCache

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone

PARTS = {
    "read": "deltamem.token_steps.TokenSteps.read",
    "correct": "deltamem.token_steps.TokenSteps.correct",
    "write": "deltamem.token_steps.TokenSteps.write",
    "project what is written": "deltamem.layer.DeltaLayer.told_products",
    "write, side by side": "deltamem.runtime.write_side_by_side",
}
"""What is timed: a token's three, then a prompt's two."""

Times = dict[str, float]


@contextmanager
def timers(spent: Times) -> Iterator[None]:
    """Add up the seconds that each part takes."""
    patches = []
    for name, where in PARTS.items():
        module, _, attribute = where.rpartition(".")
        owner, _, kind = module.rpartition(".")
        holder = getattr(__import__(owner, fromlist=[kind]), kind)
        patches.append(patch.object(holder, attribute, _timed(getattr(holder, attribute), name, spent)))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def _timed(work: Callable[..., Any], name: str, spent: Times) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began

    return call


def measure(
    model: Any, memory: DeltaMemory, prompt: int, tokens: int, repeats: int
) -> tuple[dict[str, list[Times]], ...]:
    """Times of prompts and of tokens, frozen and with memory: seconds of the whole, and of each part."""
    mute = torch.zeros(1, prompt, dtype=torch.bool)
    prompts: dict[str, list[Times]] = {"frozen": [], "memory": []}
    steps: dict[str, list[Times]] = {"frozen": [], "memory": []}
    for repeat in range(repeats + 1):  # the first warms up
        ids = torch.randint(0, 49000, (1, prompt), generator=torch.Generator().manual_seed(repeat))
        memory.reset()
        caches = {name: DynamicCache(config=model.config) for name in prompts}
        with torch.inference_mode():
            for name in prompts:
                mode = memory.disabled() if name == "frozen" else memory.writing(reads=mute)
                took = _once(model, ids, caches[name], mode)
                if repeat:
                    prompts[name].append(took)
            for _ in range(tokens):
                for name in steps:
                    mode = memory.disabled() if name == "frozen" else memory.writing()
                    took = _once(model, ids[:, -1:], caches[name], mode)
                    if repeat:
                        steps[name].append(took)
    return prompts, steps


def _once(model: Any, ids: torch.Tensor, cache: DynamicCache, mode: AbstractContextManager[Any]) -> Times:
    spent: Times = defaultdict(float)
    with timers(spent), mode:
        began = time.perf_counter()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        spent["whole"] = time.perf_counter() - began
    return spent


def rows(found: dict[str, list[Times]]) -> list[tuple[str, float]]:
    """Median milliseconds: of the frozen whole, of the whole with memory, of its parts, and of what is left."""

    def median(name: str, part: str) -> float:
        return 1000 * statistics.median(times.get(part, 0.0) for times in found[name])

    frozen, whole = median("frozen", "whole"), median("memory", "whole")
    parts = [(name, median("memory", name)) for name in PARTS if any(name in t for t in found["memory"])]
    left = whole - frozen - sum(took for _, took in parts)
    return [("frozen", frozen), ("with memory", whole), *parts, ("the rest of the difference", left)]


def main() -> None:
    """Print a table for float32 and one for 8-bit weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", help="Default: the one recommended for the backbone.")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(machine())
    for quantize in ("none", "int8"):
        backbone = load_backbone("smollm2-135m", "cpu", quantize=quantize)  # type: ignore[arg-type]
        memory = DeltaMemory.from_pretrained(backbone.model, options.adapter or backbone.adapter or "")
        prompts, steps = measure(backbone.model, memory, options.prompt, options.tokens, options.repeats)
        for what, found in ((f"a prompt of {options.prompt} tokens", prompts), ("a token", steps)):
            print(f"\n| {what}, weights {quantize} | ms |\n| --- | --- |")
            for name, took in rows(found):
                print(f"| {name} | {took:.2f} |", flush=True)
        memory.detach()


if __name__ == "__main__":
    main()
