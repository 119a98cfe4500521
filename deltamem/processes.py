"""Processes beside this one."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext, SpawnContext


def beside() -> ForkServerContext | SpawnContext:
    """How to start them: as new ones and not as copies of this one, which may have threads, and a GPU.

    Where there is a server to fork them from, what the program imports is imported once for all of them.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")
