"""Timing for the scripts beside this one: turn about, medians, and a line that says on what machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deltamem.backbones.int8 import multiplies_bfloat16


def by_turns(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, one after another in every round; a round before them is not counted."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(repeats + 1):
        for name, once in work.items():
            began = time.perf_counter()
            once()
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}


def machine() -> str:
    """Processor, threads and PyTorch, for the head of a table."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    capability = torch.backends.cpu.get_cpu_capability() + (", bfloat16" if multiplies_bfloat16() else "")
    return f"{name} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"
