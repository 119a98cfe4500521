"""How long one waits: for help, for a look at a profile, for the first word of a reply.

    python benchmarks/startup.py

Medians over real processes, on the profile in profiles/ and the default backbone of a machine without a GPU (fetch it
first: deltamem models pull smollm2-135m). The last row leaves out what importing torch and transformers takes, which
the row before it says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent.parent / "profiles" / "example.safetensors"
IMPORTS = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaForCausalLM"


def seconds(words: list[str], repeats: int, first_byte: bool = False) -> float:
    """Median time until a process is done, or until it says the first thing on standard output."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "DELTAMEM_HOME": home, "HF_HUB_OFFLINE": "1"}
        found = []
        for _ in range(repeats):
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                env=environment,
            )  # fmt: skip
            assert process.stdout is not None
            process.stdout.read(1 if first_byte else -1)
            found.append(time.perf_counter() - began)
            if first_byte:
                process.kill()
            process.wait()
        return statistics.median(found)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    cli = ["-m", "deltamem_cli"]
    imports = seconds(["-c", IMPORTS + "; print(flush=True)"], repeats, first_byte=True)
    chat = seconds([*cli, "chat", "hi", "--backbone", "smollm2-135m", "--temperature", "0"], repeats, first_byte=True)
    print("| what | seconds |\n| --- | --- |")
    print(f"| `deltamem --help` | {seconds([*cli, '--help'], repeats):.2f} |")
    print(f"| `deltamem inspect-state` on a profile | {seconds([*cli, 'inspect-state', str(EXAMPLE)], repeats):.2f} |")
    print(f"| importing torch and transformers | {imports:.2f} |")
    print(f'| first word of `deltamem chat "hi"`, beyond that | {chat - imports:.2f} |')


if __name__ == "__main__":
    main()
