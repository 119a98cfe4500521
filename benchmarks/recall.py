"""What an adapter recalls of held-out facts, beside the frozen backbone, and what it does to ordinary questions.

    python benchmarks/recall.py --backbone smollm2-135m --adapter smollm2-135m-v1

Values and phrasings are the held-out ones of the built-in generator; replies are greedy and free-running. Conditions:

    memory    the facts only in the state
    shuffled  another person's state
    frozen    the backbone alone, which was told nothing
    context   the frozen backbone with the facts in the same message as the question
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.training.batches import read_batch, write_batch
from deltamem.training.episodes import Episode, Question
from deltamem.training.objective import frozen_divergence
from deltamem.training.passes import Passes
from deltamem.training.recall import RecallScore, heldout_episodes, score_recall
from deltamem.training.synthetic import SyntheticPeople


def in_context(episodes: Sequence[Episode]) -> list[Episode]:
    """The same questions with what was told put before them."""
    return [
        replace(
            e, questions=tuple(replace(q, text=" ".join(t.user for t in e.history) + " " + q.text) for q in e.questions)
        )
        for e in episodes
    ]


def shuffled(episodes: Sequence[Episode]) -> list[Episode]:
    """Everybody's questions asked of the next one's history."""
    return [replace(e, history=episodes[(i + 1) % len(episodes)].history) for i, e in enumerate(episodes)]


def interval(share: float, count: int) -> str:
    """A share with its 95 % bootstrap interval."""
    rng = random.Random(0)
    hits = [1.0] * round(share * count) + [0.0] * (count - round(share * count))
    means = sorted(sum(rng.choices(hits, k=count)) / count for _ in range(1000))
    return f"{share:.1%} ({means[25]:.0%} to {means[974]:.0%})"


def ordinary(passes: Passes, people: SyntheticPeople, states: Sequence[Episode]) -> tuple[float, float, int]:
    """KL to the frozen backbone in nats a token, and the share of replies whose first ten words are the same."""
    prompts = people.ordinary
    state = passes.write(write_batch(passes.form, states)).clone()
    divergence, same = 0.0, 0
    for start in range(0, len(prompts), 8):
        part = prompts[start : start + 8]
        chosen = state.select([(start + i) % state.batch_size for i in range(len(part))])
        frozen = passes.reply(part, None, 24)
        bent = passes.reply(part, chosen, 24)
        same += sum(a.split()[:10] == b.split()[:10] for a, b in zip(frozen, bent, strict=True))
        batch = read_batch(
            passes.form, [(i, Question(p, r)) for i, (p, r) in enumerate(zip(part, frozen, strict=True)) if r]
        )
        with torch.no_grad():
            kl = frozen_divergence(passes.read(batch, chosen), passes.read(batch, None))
        divergence += float(kl) * len(part) / len(prompts)
    return divergence, same / len(prompts), len(prompts)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--adapter", default="smollm2-135m-v1")
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--questions", type=int, default=120, help="questions per number of facts, about")
    parser.add_argument("--show", type=int, default=0, help="print this many replies of each kind")
    options = parser.parse_args()
    backbone = load_backbone(options.backbone)
    memory = DeltaMemory.from_pretrained(backbone.model, options.adapter)
    passes = Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    people = SyntheticPeople(backbone.tokenizer)
    print(f"backbone {backbone.name} ({backbone.fingerprint}), adapter {options.adapter}, torch {torch.__version__}\n")
    print("| facts | questions | condition | exact | value named, and no other | picking at random |")
    print("| --- | --- | --- | --- | --- | --- |")
    for facts in options.facts:
        told = heldout_episodes(people, facts, max(1, options.questions // facts), seed=3)
        conditions = {
            "memory": (told, False),
            "shuffled": (shuffled(told), False),
            "frozen": (told, True),
            "context": (in_context(told), True),
        }
        for name, (episodes, frozen) in conditions.items():
            score, replies = score_recall(passes, episodes, frozen=frozen)
            print(_row(facts, name, score), flush=True)
            for reply in replies[: options.show]:
                print("   ", reply)
    kl, same, count = ordinary(passes, people, heldout_episodes(people, 3, 16, seed=4))
    print(f"\n{count} ordinary questions with a state of three facts: KL to frozen {kl:.3f} nats a token, ")
    print(f"the first ten words of the reply are the frozen ones for {same:.0%}.")


def _row(facts: int, name: str, score: RecallScore) -> str:
    exact, named = (interval(x, score.asked) for x in (score.exact, score.named))
    return f"| {facts} | {score.asked} | {name} | {exact} | {named} | {score.chance:.0%} |"


if __name__ == "__main__":
    main()
