"""A chat of 500 turns with a 2 K window: does a turn take longer, or the process grow, as the chat goes on?

    python benchmarks/long_chat.py

The small backbone and its default adapter, a reply of 8 tokens a turn. A turn in which the window overflows reads half
of it again; means over 50 turns hold about as many of those each. The time of each turn goes to --output, if given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from pathlib import Path

from timing import machine

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.session import ChatSession, Sampling

SPAN = 50
NOUNS = ("garden", "train", "letter", "kitchen", "river", "bicycle", "lamp", "market", "coat", "piano")
SAID = (
    "Today I thought about the {}.",
    "Tell me something about the {} and the {}.",
    "My {} is next to the {}, I think.",
)


def resident() -> float:
    """MiB of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not say how large a process is")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    backbone = load_backbone("smollm2-135m", "cpu")
    memory = DeltaMemory.from_pretrained(backbone.model, backbone.adapter or "")
    sampling = Sampling(temperature=0, max_tokens=8)
    session = ChatSession(backbone.model, backbone.tokenizer, memory, context=options.context, sampling=sampling)
    choose = random.Random(0)
    seconds, sizes, evicted = [], [], []
    for _ in range(options.turns):
        text = choose.choice(SAID)
        text = text.format(*choose.sample(NOUNS, text.count("{}")))
        began = time.perf_counter()
        for _event in session.send(text):
            pass
        seconds.append(time.perf_counter() - began)
        sizes.append(resident())
        assert session.last is not None
        evicted.append(session.last.evicted)
    if options.output is not None:
        lines = itertools.starmap(lambda *row: json.dumps(row), zip(seconds, sizes, evicted, strict=True))
        options.output.write_text("\n".join(lines) + "\n")
    early, late = slice(SPAN, 2 * SPAN), slice(-SPAN, None)
    print(f"{machine()}; {options.turns} turns, window of {options.context} tokens, {backbone.quantization} weights\n")
    print(f"| what | turns {SPAN} to {2 * SPAN} | last {SPAN} | ratio |\n| --- | --- | --- | --- |")
    for name, of, mean in (
        ("seconds a turn, median", seconds, statistics.median),
        ("seconds a turn, mean", seconds, statistics.mean),
        ("resident MiB, mean", sizes, statistics.mean),
        ("turns in which old ones left the window", evicted, sum),
    ):
        a, b = mean(of[early]), mean(of[late])  # type: ignore[operator]
        print(f"| {name} | {a:.3f} | {b:.3f} | {b / a:.3f} |" if a else f"| {name} | {a} | {b} | - |")


if __name__ == "__main__":
    main()
