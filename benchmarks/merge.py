"""What survives of each when two profiles are merged.

    python benchmarks/merge.py --facts 2 --people 24

Made-up people tell facts in two halves, each to a profile of its own; the profiles are merged, and every fact is asked
for. Held-out values and phrasings, greedy, free-running; right is a reply that names the value and no other that was
told. Beside it: each half alone, and both told to one profile, the first half first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from deltamem import DeltaMemory, MemoryState
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import ask_tokens
from deltamem.episodes.episode import Question, Turn
from deltamem.episodes.passes import Passes
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.items import Item, Task
from deltamem.evaluation.tasks.recall import recall_task
from deltamem.profiles.merging import merged_matrices

BATCH = 16


def asked(passes: Passes, task: Task, items: Sequence[Item], states: dict[str, MemoryState]) -> dict[str, float]:
    """Whether each item was answered right, by its id."""
    right: dict[str, float] = {}
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        state = MemoryState.stack([states[item.conversation] for item in part])
        asks = [ask_tokens(passes.form, Question(item.question, "")) for item in part]
        replies = passes.reply(asks, state, task.max_tokens)
        right |= {i.id: task.score(i, reply)["named"] for i, reply in zip(part, replies, strict=True)}
    return right


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--adapter")
    parser.add_argument("--facts", type=int, default=2, help="facts told to each profile")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--weights", default="0.25,0.5,0.75")
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, "cpu", dtype=torch.bfloat16)
    adapter = options.adapter or backbone.adapter
    memory = DeltaMemory.from_pretrained(backbone.model, adapter)
    passes = Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    count = 2 * options.facts
    task = recall_task(backbone.tokenizer, count * options.people, [count], parts=("facts",))
    halves: dict[str, dict[str, Sequence[Turn]]] = {"a": {}, "b": {}}
    for name, turns in task.histories.items():
        halves["a"][name], halves["b"][name] = turns[: len(turns) // 2], turns[len(turns) // 2 :]
    side = {
        item.id: "a" if any(item.value in turn.user for turn in halves["a"][item.conversation]) else "b"
        for item in task.items
    }
    of = {half: [item for item in task.items if side[item.id] == half] for half in "ab"}
    states = {half: write_histories(passes, turns, 1024, BATCH) for half, turns in halves.items()}
    rows: list[tuple[str, dict[str, MemoryState]]] = [
        ("the first alone", states["a"]),
        ("the second alone", states["b"]),
    ]
    for weight in map(float, options.weights.split(",")):
        merged = {}
        for name, state in states["a"].items():
            matrices, _ = merged_matrices(state.matrices(), states["b"][name].matrices(), weight)
            merged[name] = MemoryState.of(matrices, state.layers)
        rows.append((f"merged, weight {weight:g}", merged))
    rows.append(("both told to one profile", write_histories(passes, task.histories, 1024, BATCH)))
    print(f"adapter {adapter}, {options.facts} facts a profile on average, {options.people} people\n")
    print("| profile | facts of the first | facts of the second |\n| --- | --- | --- |")
    for name, kept in rows:
        shares = []
        for half in "ab":
            right = asked(passes, task, of[half], kept)
            shares.append(f"{sum(right.values()) / len(right):.0%} of {len(right)}")
        print(f"| {name} | {shares[0]} | {shares[1]} |", flush=True)


if __name__ == "__main__":
    main()
