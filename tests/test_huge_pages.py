"""Large tensors are mapped in few pieces once a command has asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SCRIPT = """
import resource, sys
from deltamem_cli.huge_pages import use_huge_pages
if sys.argv[1] == "huge":
    use_huge_pages()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(25_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(), reason="the system gives all huge pages, or none"
)
def test_large_tensors_are_mapped_in_few_pieces() -> None:
    plain = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    huge, small = (
        int(
            subprocess.run(
                [sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True, env=plain
            ).stdout
        )
        for way in ("huge", "small")
    )
    assert huge < small / 4
