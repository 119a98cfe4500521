"""Large tensors in huge pages, where a command takes and frees many of them."""

from __future__ import annotations

import os


def use_huge_pages() -> None:
    """Have torch ask Linux for huge pages; to be called before torch is imported, and of no effect elsewhere.

    A training step takes and frees some 1 GB. In pages of 4 KB, each mapped and zeroed by itself, that was a third of
    its time on a CPU (benchmarks/places.md).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
