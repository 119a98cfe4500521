"""Is a fact written, is it found, does it survive the next one? What stands between an adapter and perfect recall.

    python benchmarks/addressing.py --adapter smollm2-135m-v1

Per layer: how well keys of different facts are kept apart, and how well questions find the right one. Over all layers:
how well a linear decoder reads the value's first token out of the state, and how often it comes out of the model
(teacher-forced), by when the fact was told. Training values and phrasings; the people were never trained on.
"""

from __future__ import annotations

import argparse
import random

import torch

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.addressing import classes
from deltamem.training.fitting import stacked_weights
from deltamem.training.recorder import Recorder, asking_places, told_names


def addressing(passes: Passes, episodes: list[Episode]) -> None:
    """Print, per layer, overlap of keys, and the cosine of questions with the right key and with others."""
    weights, numbers = stacked_weights(passes.memory), {}  # type: ignore[var-annotated]
    history = write_batch(passes.form, episodes)
    with torch.no_grad(), Recorder(passes.memory, history.values > 0) as told:
        state = passes.write(history).clone()
    told_class = classes(told_names(history, episodes), numbers)
    asked = [(i, q) for i, e in enumerate(episodes) for q in e.questions]
    questions = read_batch(passes.form, asked)
    places, names = asking_places(questions, asked)
    with torch.no_grad(), Recorder(passes.memory, places) as asking:
        passes.read(questions, state)
    asking_class = classes(names, numbers)
    with torch.no_grad():
        keys = weights.unit(weights.key, told.stacked())
        queries = weights.unit(weights.query, asking.stacked())
        gates = weights.gates(told.stacked()).sigmoid().mean((1, 2))
        crossing = torch.einsum("lahr,lbhr->lab", keys, keys).square()
        match = torch.einsum("lqhr,lkhr->lqk", queries, keys)
    other = told_class[:, None] != told_class[None]
    right = asking_class[:, None] == told_class[None]
    print("| layer | overlap of keys (cos^2) | question with its key (cos) | with another (cos^2) | write gate |")
    print("| --- | --- | --- | --- | --- |")
    rows = [
        (crossing[i][other].mean(), match[i][right].mean(), match[i][~right].square().mean(), gates[i])
        for i in range(len(keys))
    ]
    for i, row in enumerate(rows):
        print(f"| {i} | " + " | ".join(f"{x:.2f}" for x in row) + " |")
    means = [sum(float(row[k]) for row in rows) / len(rows) for k in range(4)]
    print("| mean | " + " | ".join(f"{x:.2f}" for x in means) + " |\n")


def by_position(passes: Passes, people: SyntheticPeople, facts: int, count: int) -> str:
    """A row: how often each fact's value comes out right, the one told first first."""
    rng = random.Random(f"position-{facts}")
    right = [0] * facts
    episodes = [people.episode(rng, Difficulty(), "train", facts=facts) for _ in range(count)]
    for start in range(0, count, 8):
        part = episodes[start : start + 8]
        asked = [(i, q) for i, e in enumerate(part) for q in e.questions]
        batch = read_batch(passes.form, asked)
        with torch.no_grad():
            logits = passes.read(batch, passes.write(write_batch(passes.form, part)).clone())
        targets, values, _ = batch.expected()
        rows = (batch.targets != -100).nonzero()[:, 0]
        correct = logits.argmax(-1).cpu() == targets
        for n, (i, question) in enumerate(asked):
            told = " ".join(t.user for t in part[i].history)
            order = sorted(part[i].questions, key=lambda q: told.find(q.value or ""))
            right[order.index(question)] += bool(correct[(rows == n) & values].all())
    return f"| {facts} | " + ", ".join(f"{r / count:.0%}" for r in right) + " |"


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--adapter", default=None, help="default: the recommended one")
    parser.add_argument("--people", type=int, default=48)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone)
    adapter = options.adapter or backbone.adapter
    passes = Passes(
        DeltaMemory.from_pretrained(backbone.model, adapter), ChatFormat.of(backbone.tokenizer, stops=backbone.stops)
    )
    people = SyntheticPeople(backbone.tokenizer)
    print(f"backbone {backbone.name}, adapter {adapter}, torch {torch.__version__}\n")
    rng = random.Random("addressing")
    addressing(passes, [people.episode(rng, Difficulty(), "train", facts=3) for _ in range(options.people)])
    print("| facts told | value right (teacher-forced), the first told first |\n| --- | --- |")
    for facts in (1, 2, 3, 4, 6, 8):
        print(by_position(passes, people, facts, options.people), flush=True)


if __name__ == "__main__":
    main()
