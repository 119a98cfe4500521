"""Saving, killed at random moments, by real processes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from deltamem.profiles import ProfileStore, load_profile
from deltamem.profiles.history import History

WRITER = """
import sys
from pathlib import Path
import numpy as np
from deltamem.profiles import ProfileInfo, ProfileStore, load_profile, save_profile
from deltamem.profiles.file import Profile, empty_profile
from deltamem.profiles.history import History
from dataclasses import replace

store = ProfileStore(Path(sys.argv[1]))
with store.lock("work"):
    path = store.path("work")
    info = ProfileInfo("b", "f" * 16, "adapter", "a" * 16, {"rank": 8, "num_state_heads": 1}, tuple(range(30)))
    profile = load_profile(path) if path.exists() else empty_profile(info)
    history = History(History.beside(path), profile, limit=20)
    while True:
        turns = profile.info.turns + 1
        matrices = np.full((30, 1, 8, 8), turns, np.float32)
        profile = Profile(replace(profile.info, turns=turns, tokens=3 * turns), matrices, profile.matrices)
        profile = history.append(profile)
        save_profile(path, profile)
        print(turns, flush=True)
"""


def crash_saves(folder: Path, turns: int, seed: int = 0) -> int:
    """Kill a process that saves, again and again, until so many turns were saved; returns the number of kills.

    Raises:
        AssertionError: a profile was not one of the last two turns, its past was lost, or temporary files were left.
    """
    rng = random.Random(seed)
    store, saved, kills = ProfileStore(folder), 0, 0
    while saved < turns:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        assert first, process.stderr.read()
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        said = [int(first), *map(int, process.stdout.read().split())]
        kills += 1
        with store.lock("work"):  # a dead holder holds nothing, and what it left half written is cleared away
            profile = load_profile(store.path("work"))
            last = said[-1]
            assert profile.info.turns in (last, last + 1), (profile.info.turns, last)
            assert (profile.matrices == profile.info.turns).all()
            history = History(History.beside(store.path("work")), profile, limit=20)
            for entry in history.line(profile.info.entry):
                assert (history.matrices(entry.id) == entry.turns).all()
            # A kill between the two files leaves a state in the history that is on no line; it counts as one of the 20.
            assert len(history.entries) >= min(20, profile.info.turns)
            turns_kept = [entry.turns for entry in history.line(profile.info.entry)]
            assert turns_kept == list(range(turns_kept[0], profile.info.turns + 1)), turns_kept
            left = [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]
            assert not left, left
        saved = profile.info.turns
    return kills
