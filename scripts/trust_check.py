"""Long forms of the checks that nothing is lost and nothing bad gets in.

    python scripts/trust_check.py crash --turns 500
    python scripts/trust_check.py fuzz --cases 10000
    python scripts/trust_check.py soak --turns 1000

Each needs the `dev` extra and a checkout, no network and no real weights. They stop at the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.progress import track  # noqa: E402


def crash(folder: Path, turns: int, seed: int) -> str:
    """Kill -9 at random moments."""
    from tests.trust.crashing import crash_saves

    kills = crash_saves(folder, turns, seed)
    return f"{turns} turns saved, {kills} kills: every profile was one of its last two turns, nothing was left over"


def fuzz(folder: Path, cases: int, seed: int) -> str:
    """Bad input."""
    from tests.conftest import make_tokenizer
    from tests.trust.fuzzing import Seeds, fresh, run_case

    seeds = Seeds(folder / "seeds", make_tokenizer())
    for number in track(range(seed, seed + cases), "fuzzing"):
        case = fresh(folder, number)
        run_case(number, seeds, case)
        shutil.rmtree(case)
    return f"{cases} cases: all refused in words or taken, no file changed"


def soak(folder: Path, turns: int, seed: int) -> str:
    """Random commands."""
    from deltamem.backbones.load import load_backbone
    from tests.conftest import make_memory, make_model, make_tokenizer
    from tests.trust.soaking import soak as run

    make_model().save_pretrained(folder / "backbone")
    make_tokenizer().save_pretrained(folder / "backbone")
    make_memory(make_model()).save_pretrained(folder / "adapter")
    backbone = load_backbone(str(folder / "backbone"), "cpu")
    used = run(backbone, str(folder / "adapter"), folder / "profiles", turns, seed)
    return f"{turns} turns, " + ", ".join(f"{name} {count}" for name, count in sorted(used.items()))


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("crash", "fuzz", "soak"))
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="deltamem-trust-") as name:
        folder = Path(name)
        if options.check == "fuzz":
            said = fuzz(folder, options.cases, options.seed)
        else:
            said = {"crash": crash, "soak": soak}[options.check](folder, options.turns, options.seed)
    print(f"{options.check}: {said} ({time.monotonic() - began:.0f} s, seed {options.seed})")


if __name__ == "__main__":
    main()
