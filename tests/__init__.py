"""Tests of deltamem and its command line."""

import os
from pathlib import Path

if not Path("/dev/nvidia0").exists():
    # Before anything imports Triton: without a GPU its kernels run in the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
