"""Saving a profile with its history, as a chat does after every turn, and loading it.

    python benchmarks/saving.py [--folder FOLDER]

The state of a Qwen3-4B shape: 36 layers, one head, r = 8. A save is flushed to the disk (fsync).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import machine

from deltamem import DeltaMemConfig
from deltamem.profiles.file import Profile, ProfileInfo, load_profile, save_profile
from deltamem.profiles.history import History

SHAPE = (36, 1, 8, 8)
TURNS = 250
"""More than a history keeps by default, so that clearing it up is among the turns measured."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Where to write; default: a temporary folder.")
    folder = parser.parse_args().folder
    random = np.random.default_rng(0)
    layers = tuple(range(SHAPE[0]))
    info = ProfileInfo("qwen3-4b", "0" * 16, "adapter", "0" * 16, DeltaMemConfig().to_dict(), layers)
    saves, loads = [], []
    with tempfile.TemporaryDirectory(dir=folder) as home:
        path = Path(home) / "work.safetensors"
        before = np.zeros(SHAPE, np.float32)
        profile = Profile(info, before, before)
        history = History(path, profile)
        for _ in range(TURNS):
            now = random.standard_normal(SHAPE).astype(np.float32)
            began = time.perf_counter()
            profile = history.append(Profile(profile.info, now, before))
            save_profile(path, profile)
            saves.append(1e3 * (time.perf_counter() - began))
            began = time.perf_counter()
            loaded = load_profile(path)
            loads.append(1e3 * (time.perf_counter() - began))
            assert np.array_equal(loaded.matrices, now)
            before = now
        size = path.stat().st_size / 1024
    print(
        f"{machine()}; {TURNS} turns, a file of {size:.0f} KiB\n\n"
        "| what | median, ms | longest, ms |\n| --- | --- | --- |"
    )
    print(f"| save: history and profile | {statistics.median(saves):.1f} | {max(saves):.1f} |")
    print(f"| load | {statistics.median(loads):.1f} | {max(loads):.1f} |")


if __name__ == "__main__":
    main()
