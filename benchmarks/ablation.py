"""What each part of the objective does: the same steps from the same adapter, with one part left out or put in.

    python benchmarks/ablation.py --work runs --output benchmarks/ablation.md

Every run draws the same histories and questions. Afterwards held-out facts are asked for, things never told too, and
ordinary questions are compared with the frozen backbone's replies. What is in --work already is not done again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import machine

PARTS: dict[str, tuple[str, ...]] = {
    "the preset `continued`": (),
    "without addressing": ("--addressing-weight", "0"),
    "without ordinary questions": ("--ordinary", "0"),
    "without the answer's first token": ("--start-weight", "0"),
    "without the answer's other tokens": ("--rest-weight", "0"),
    "with distillation, 0.5": ("--distill-weight", "0.5"),
    "with contrast, 0.5": ("--contrast-weight", "0.5"),
    "with sparsity, 10": ("--sparsity-weight", "10"),
    "the answer's cross-entropy alone": (
        "--addressing-weight", "0", "--ordinary", "0", "--start-weight", "1", "--rest-weight", "1",
    ),
}  # fmt: skip
"""Rows of the table, and what is given to `train-adapter` besides."""

COLUMNS = (
    "seconds a step",
    "1 fact",
    "4 facts",
    "never told",
    "corrected",
    "first ten words as frozen",
    "KL to frozen",
)


def deltamem(*words: str) -> str:
    """Run the tool; returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "deltamem_cli", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def train(folder: Path, options: argparse.Namespace, more: tuple[str, ...]) -> None:
    """Go on from the adapter for so many steps, unless that was done."""
    if (folder / "README.md").is_file():
        return
    begun = ("--resume",) if (folder / "checkpoint.safetensors").is_file() else ()
    words = ("--backbone", options.backbone, "--from", options.start, "--preset", "continued", "--dtype", "bfloat16")
    steps = ("--steps", str(options.steps), "--seed", str(options.seed), "--eval-every", "100000")
    deltamem("train-adapter", *words, *steps, "--eval-questions", "1", *more, "--output", str(folder), *begun)


def evaluated(folder: Path, adapter: str, options: argparse.Namespace) -> dict[str, Any]:
    """The rows of both evaluations, unless they are in the folder already."""
    path = folder / "evaluated.json"
    if not path.is_file():
        common = ("--backbone", options.backbone, "--adapter", adapter, "--dtype", "bfloat16", "--quantize", "none")
        asked = ("--conditions", "memory", "--parts", "facts,never told,corrected", "--facts", "1,4")
        recall = deltamem("eval", "recall", *asked, "--questions", str(options.questions), *common, "--json")
        ordinary = deltamem("eval", "ordinary", *common, "--json")
        path.write_text(json.dumps({"recall": json.loads(recall)["rows"], "ordinary": json.loads(ordinary)["rows"]}))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def cells(found: dict[str, Any], seconds: float | None) -> list[str]:
    """One row of the table."""

    def named(**labels: object) -> str:
        (row,) = (r for r in found["recall"] if r["slice"] == labels)
        return _interval(row["named"], "{:.0%}")

    (ordinary,) = (r for r in found["ordinary"] if r["facts"] == 4)
    return [
        f"{seconds:.1f}" if seconds is not None else "",
        named(facts=1),
        named(facts=4),
        named(kind="never told"),
        named(kind="corrected"),
        _interval(ordinary["same"], "{:.0%}"),
        _interval(ordinary["kl"], "{:.3f}"),
    ]


def _interval(figure: dict[str, float], form: str) -> str:
    mean, low, high = (form.format(figure[k]) for k in ("mean", "low", "high"))
    return f"{mean} ({low}-{high})"


def _seconds(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(sum(line["seconds"] for line in lines) / len(lines))


def main() -> None:
    """Train, evaluate and write the table, which is complete as far as it got after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--start", default="smollm2-135m-v6", help="the adapter all runs begin with")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--questions", type=int, default=48, help="per figure")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(PARTS)), help="of PARTS; all if left out")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the adapters and their figures")
    parser.add_argument("--output", type=Path, required=True, help="the table, as Markdown")
    options = parser.parse_args()
    start = options.work / "start"
    start.mkdir(parents=True, exist_ok=True)
    rows = [[f"{options.start}, as it was", *cells(evaluated(start, options.start, options), None)]]
    replies: Path | None = None
    for number, (name, more) in enumerate(PARTS.items()):
        if number not in options.rows:
            continue
        began = time.monotonic()
        folder = options.work / f"part{number}"
        folder.mkdir(exist_ok=True)
        if replies is not None and not (folder / replies.name).exists():
            os.link(replies, folder / replies.name)  # the frozen backbone's, the same for all
        train(folder, options, more)
        found = folder / "frozen_replies.json"
        replies = found if found.exists() else replies
        rows.append([name, *cells(evaluated(folder, str(folder), options), _seconds(folder))])
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        options.output.write_text(_table(rows, options))


def _table(rows: list[list[str]], options: argparse.Namespace) -> str:
    head = ["", *COLUMNS]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    command = f"python benchmarks/ablation.py --start {options.start} --steps {options.steps}"
    said = (
        f"`{command} --questions {options.questions} --seed {options.seed}`, "
        f"{datetime.date.today().isoformat()}, {machine()}. The value is named "
        "by the reply and no other that was told, of held-out values and phrasings; never told: the reply says so; the "
        "last two with four facts in the state. In brackets 95 % bootstrap intervals."
    )
    return "\n".join(["# What each part of the objective does", "", said, "", *lines, ""])


if __name__ == "__main__":
    main()
