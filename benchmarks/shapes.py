"""How many facts a state of each shape holds, right after the start of a run, before any step on places.

    python benchmarks/shapes.py --shapes 8x1,8x4,16x1,32x1,64x1 --episodes 900

Keys and queries in closed form, values and corrections learnt alone beside what else is read
(`deltamem/training/places/start.py`); gates are as a run begins with them. Share of value tokens of held-out people
said right, teacher-forced, among all tokens, after so many facts. A value is of several tokens, and some facts were
told before with another. What was never told is not asked for: the start does not know of it yet.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from statistics import fmean

import torch

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places.bank import Bank, with_words
from deltamem.training.places.builder import build_bank
from deltamem.training.places.draw import Drawing
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.start import start_from
from deltamem.training.places.states import states_of
from deltamem.training.places.tail import Tail
from deltamem.training.places.vocabulary import tell_vocabulary
from deltamem.training.presets import PRESETS
from deltamem.training.warm_start import delta_layers

FACTS = (1, 2, 4, 8, 16, 32)
HISTORIES, QUESTIONS = 240, 600
"""Facts told in all for each number of them in a history, at least a dozen histories, and questions."""


@torch.no_grad()
def said_right(memory: DeltaMemory, bank: Bank, facts: int) -> tuple[float, float]:
    """Share of value tokens said right, and how many tokens a history has."""
    drawn = Drawing(bank).histories(random.Random(facts), facts, max(12, HISTORIES // facts), 0.0, QUESTIONS)
    layers, tail = Stacked(delta_layers(memory)), Tail(memory)
    states = states_of(layers, bank, drawn)
    values = bank.values[drawn.places]
    places, rows, targets = drawn.places[values], drawn.rows[values], drawn.targets[values]
    bent = layers.bent(bank.places[:, places], bank.residuals[places], states, rows)
    return float((tail(bent).argmax(-1) == targets).float().mean()), float(drawn.valid.sum(1).float().mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--shapes", default="8x1,8x4,16x1,32x1,64x1", help="r x heads")
    parser.add_argument("--episodes", type=int, default=900)
    parser.add_argument("--held-out", type=int, default=240)
    args = parser.parse_args()
    loaded = load_backbone(args.backbone, device="cpu", quantize="none", dtype=torch.float32)
    config, people = PRESETS["places"].config, SyntheticPeople(loaded.tokenizer)
    # The layers that the adapter that ships has.
    config = replace(config, target_layers=tuple(range(4, loaded.model.config.num_hidden_layers)))
    memory = DeltaMemory.attach(loaded.model, config)
    passes = Passes(memory, ChatFormat.of(loaded.tokenizer, stops=loaded.stops))
    bank = with_words(build_bank(passes, people, [], args.episodes, begun=False), tell_vocabulary(passes, people, 1))
    tested = build_bank(passes, people, [], args.held_out, 1, split="heldout", begun=False)
    print(
        f"{len(bank.facts)} facts, {len(bank.told_ids)} told tokens; held out {len(tested.facts)} facts\n", flush=True
    )
    print("| r | heads | numbers a layer |", " | ".join(f"{n} facts" for n in FACTS), "| seconds |")
    print("| --- " * (len(FACTS) + 4) + "|", flush=True)
    tokens: list[float] = []
    for shape in args.shapes.split(","):
        rank, heads = map(int, shape.split("x"))
        memory.detach()
        memory = DeltaMemory.attach(
            loaded.model, replace(config, rank=rank, num_state_heads=heads, alpha=config.alpha * rank / config.rank)
        )
        began = time.time()
        start_from(memory, bank)
        took = time.time() - began
        found = [said_right(memory, tested, n) for n in FACTS]
        tokens = [length / n for n, (_, length) in zip(FACTS, found, strict=True)]
        shares = " | ".join(f"{share:.0%}" for share, _ in found)
        print(f"| {rank} | {heads} | {rank * rank * heads} | {shares} | {took:.0f} |", flush=True)
    print(f"\n{fmean(tokens):.1f} tokens are written a fact.")


if __name__ == "__main__":
    main()
