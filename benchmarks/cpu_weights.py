"""Which form of the weights makes a token fastest on this CPU, and what it does to what the model says.

    python benchmarks/cpu_weights.py [--text FILE]

Milliseconds a token after a prompt of 200, prompt tokens a second, and the perplexity of a text in windows of 256
tokens, beside float32's. Without --text it is the documentation of Python's own modules. Perplexity is measured twice:
with whole windows, as prompts are read, and a token at a time, as replies are made.
"""

from __future__ import annotations

import argparse
import importlib
import math
import pkgutil
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from deltamem.backbones.fetch import fetch
from deltamem.backbones.int8 import to_int8

WINDOW = 256


def loaded(kind: str, path: Path) -> Any:
    """The small backbone with its weights in some form."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().requires_grad_(False)
    if kind == "dynamic int8":
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    if kind == "int8":
        to_int8(model)
    return model


def speed(model: Any, repeats: int) -> tuple[float, float]:
    """Milliseconds a token, and prompt tokens a second."""
    tokens, prompts = [], []
    ids = torch.randint(0, 49000, (1, 200), generator=torch.Generator().manual_seed(0))
    for _ in range(repeats):
        cache = DynamicCache(config=model.config)
        began = time.perf_counter()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        prompts.append(time.perf_counter() - began)
        for _ in range(16):
            began = time.perf_counter()
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens.append(time.perf_counter() - began)
    return 1e3 * statistics.median(tokens), ids.shape[1] / statistics.median(prompts)


def surprise(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Summed negative log-likelihood of every token but the first, ids (T)."""
    return float(nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum"))


def perplexities(model: Any, windows: torch.Tensor, alone: int) -> tuple[float, float]:
    """Of all windows, each at once; and of the first few, a token at a time."""
    at_once = sum(surprise(model(input_ids=row[None]).logits[0], row) for row in windows)
    one_by_one = 0.0
    for row in windows[:alone]:
        cache = DynamicCache(config=model.config)
        parts = [model(input_ids=token[None, None], past_key_values=cache, use_cache=True).logits[0] for token in row]
        one_by_one += surprise(torch.cat(parts), row)
    return math.exp(at_once / (windows.numel() - len(windows))), math.exp(one_by_one / (alone * (WINDOW - 1)))


def documentation() -> str:
    """What Python's own modules say about themselves; names alone decide which."""
    texts = []
    for module in sorted(m.name for m in pkgutil.iter_modules() if m.name in ALL):
        texts.append(importlib.import_module(module).__doc__ or "")
    return "\n\n".join(texts)


ALL = [
    "argparse",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "cmd",
    "code",
    "collections",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "gettext",
    "gzip",
    "heapq",
    "inspect",
    "json",
    "logging",
    "mailbox",
    "optparse",
    "pdb",
    "pickle",
    "pprint",
    "profile",
    "pydoc",
    "queue",
    "random",
    "re",
    "sched",
    "shelve",
    "shlex",
    "smtplib",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "traceback",
    "typing",
    "unittest",
    "urllib",
    "uuid",
    "weakref",
    "zipfile",
]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--alone", type=int, default=8, help="Windows that are read a token at a time as well.")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    path = fetch("smollm2-135m")
    text = documentation() if options.text is None else options.text.read_text()
    ids = AutoTokenizer.from_pretrained(path)(text)["input_ids"]
    count = min(options.windows, len(ids) // WINDOW)
    windows = torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)
    warnings.simplefilter("ignore")
    print(f"{machine()}; {count} windows of {WINDOW} tokens, {min(options.alone, count)} of them a token at a time\n")
    print("| weights | ms a token | prompt tokens a second | perplexity, prompts | perplexity, replies |")
    print("| --- | --- | --- | --- | --- |")
    base: tuple[float, float] | None = None
    for kind in ("float32", "bfloat16", "dynamic int8", "int8"):
        model = loaded(kind, path)
        with torch.inference_mode():
            token, prompt = speed(model, options.repeats)
            found = perplexities(model, windows, min(options.alone, count))
        base = base or found
        changes = [f"{p:.3f} ({100 * (p / b - 1):+.2f} %)" for p, b in zip(found, base, strict=True)]
        print(f"| {kind} | {token:.1f} | {prompt:.0f} | {changes[0]} | {changes[1]} |", flush=True)


if __name__ == "__main__":
    main()
