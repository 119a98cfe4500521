"""What the newest adapter recalls of what earlier ones wrote, as `deltamem profiles upgrade` lets it.

    python benchmarks/earlier_profiles.py --written-by smollm2-135m-v12 smollm2-135m-v22 --questions 48

Made-up people tell words and names (held-out values and phrasings), which an earlier adapter writes and the newest one
is asked about, greedy. Beside it how alike the two adapters' states are after the same history: the cosine, the mean
over histories and the least over layers.
"""

from __future__ import annotations

import argparse

import torch

from deltamem import DeltaMemory, MemoryState
from deltamem.backbones.catalog import CATALOG
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import ask_tokens
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.items import Task
from deltamem.evaluation.tasks.recall import recall_task

BATCH = 16


def passes_of(adapter: str) -> Passes:
    """A backbone of its own with the adapter."""
    backbone = load_backbone("smollm2-135m", "cpu", dtype=torch.float32)
    memory = DeltaMemory.from_pretrained(backbone.model, adapter)
    return Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))


def recalled(passes: Passes, task: Task, states: dict[str, MemoryState]) -> dict[int, float]:
    """Share of questions whose value is named, by the number of facts told."""
    named: dict[int, list[float]] = {}
    for start in range(0, len(task.items), BATCH):
        some = task.items[start : start + BATCH]
        asks = [ask_tokens(passes.form, Question(item.question, "")) for item in some]
        replies = passes.reply(asks, MemoryState.stack([states[i.conversation] for i in some]), task.max_tokens)
        for item, reply in zip(some, replies, strict=True):
            named.setdefault(int(item.labels["facts"]), []).append(task.score(item, reply)["named"])
    return {facts: sum(scores) / len(scores) for facts, scores in named.items()}


def alike(mine: dict[str, MemoryState], theirs: dict[str, MemoryState]) -> tuple[float, float]:
    """The mean cosine of states over histories and layers, and that of the layer where it is least."""
    found = []
    for name in mine:
        ours, others = mine[name].tensor.flatten(1), theirs[name].tensor.flatten(1)
        cosines = torch.cosine_similarity(ours, others, dim=-1)
        found.append(cosines.masked_fill(~ours.any(-1) & ~others.any(-1), 1.0))  # a layer may write nothing
    every = torch.stack(found)
    return float(every.mean()), float(every.mean(0).min())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    entry = CATALOG["smollm2-135m"]
    parser.add_argument("--written-by", nargs="+", default=list(entry.reads))
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    newest = passes_of(str(entry.adapter))
    task = recall_task(newest.form.tokenizer, options.questions, options.facts, parts=("facts",), seed=11)
    own = write_histories(newest, task.histories, 1024, BATCH)
    print(f"read by {entry.adapter}\n\n| written by | " + " | ".join(f"{n} facts" for n in options.facts), end=" |")
    print(" states' cosine | least of a layer |\n|" + " --- |" * (len(options.facts) + 3))
    for adapter in [str(entry.adapter), *options.written_by]:
        states = write_histories(passes_of(adapter), task.histories, 1024, BATCH)
        shares = recalled(newest, task, states)
        figures = [*(f"{shares[n]:.0%}" for n in options.facts), *(f"{x:.3f}" for x in alike(own, states))]
        print(f"| {adapter} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
