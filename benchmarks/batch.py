"""Sixteen sessions in one batch, each with a state of its own, against sixteen runs of one.

    python benchmarks/batch.py

The small backbone (deltamem models pull smollm2-135m); every session reads a prompt of its own and makes 32 tokens,
writing throughout. In a batch the prompts are of one length, as `deltamem eval` groups them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from timing import machine
from transformers import DynamicCache

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone


def run(model: Any, memory: DeltaMemory, ids: torch.Tensor, tokens: int) -> float:
    """Seconds to read prompts (B, T) and make tokens after them."""
    memory.reset(len(ids))
    began = time.perf_counter()
    with torch.inference_mode(), memory.writing():
        cache = DynamicCache(config=model.config)
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(tokens):
            chosen = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=chosen, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - began


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", help="Default: the one recommended for the backbone.")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    print(f"{machine()}\n\n| weights | 16 runs of one, s | one batch of 16, s | times the throughput |")
    print("| --- | --- | --- | --- |")
    for quantize in ("none", "int8"):
        backbone = load_backbone("smollm2-135m", "cpu", quantize=quantize)  # type: ignore[arg-type]
        memory = DeltaMemory.from_pretrained(backbone.model, options.adapter or backbone.adapter or "")
        ids = torch.randint(0, 49000, (16, options.prompt), generator=torch.Generator().manual_seed(0))
        for _ in range(2):  # the first round warms up
            together = run(backbone.model, memory, ids, options.tokens)
            apart = sum(run(backbone.model, memory, row[None], options.tokens) for row in ids)
        print(f"| {quantize} | {apart:.1f} | {together:.1f} | {apart / together:.1f} |", flush=True)
        memory.detach()


if __name__ == "__main__":
    main()
