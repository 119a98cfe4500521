"""How well an adapter tells apart what people tell together, as a mother's name and a father's.

    python benchmarks/close_keys.py --adapter smollm2-135m-v17

For each pair of relations of `eval recall --parts close`: the cosine of their keys where the same value is told, and
the products of the query with its own key and with the other's where the value is to be said, with read gates counted;
means over layers and heads, and over both of the pair. Two that have a product in common are told apart by chance.
"""

from __future__ import annotations

import argparse
from statistics import fmean

import torch
from torch import Tensor

from deltamem import DeltaMemory
from deltamem.adapter import resolve_adapter
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.passes import Passes
from deltamem.evaluation.tasks.recall import CLOSE
from deltamem.key_pairs import lent
from deltamem.layer import told_of
from deltamem.training.places.stacked import Stacked
from deltamem.training.recorder import Recorder
from deltamem.training.warm_start import delta_layers

VALUE = "Bella"


@torch.no_grad()
def key_and_query(passes: Passes, noun: str) -> tuple[Tensor, Tensor]:
    """The key that is written with the value's first token, and the query where it is to be said, (layers, H, r)."""
    layers, memory = Stacked(delta_layers(passes.memory)), passes.memory
    question = Question(f"What is my {noun} called?", f"Your {noun} is called {VALUE}.", VALUE, noun)
    batch = write_batch(passes.form, [Episode((Turn(f"My {noun} is called {VALUE}.", "Got it."),), (question,))])
    at = int((batch.values[0] > 0).nonzero()[0])
    with memory.disabled(), Recorder(memory, torch.ones_like(batch.written)) as seen:
        passes.run(batch)
    hidden = seen.stacked()
    told, before = hidden[:, at : at + 1], lent(hidden, None, batch.written, memory.config.fading)[:, at : at + 1]
    key = told_of(memory.config, layers.told_products(told, before if memory.config.keys == "pair" else None, told)).k
    asked = read_batch(passes.form, [(0, question)])
    place = torch.zeros_like(asked.valid)
    place[0, asked.valid.shape[1] - asked.values.shape[1] + int((asked.values[0] > 0).nonzero()[0])] = True
    with Recorder(memory, place) as seen:
        passes.look(asked)
    return key[:, 0], layers.queries(seen.stacked())[:, 0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--adapter", default="smollm2-135m-v17")
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, device="cpu", quantize="none", dtype=torch.float32)
    memory = DeltaMemory.from_pretrained(backbone.model, resolve_adapter(options.adapter))
    passes = Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    print("| pair | keys | query with its own key | with the other's |\n| --- | --- | --- | --- |")
    rows = []
    for pair in CLOSE:
        (key, query), (other, asking) = (key_and_query(passes, noun) for noun in pair)

        def mean(a: Tensor, b: Tensor) -> float:
            return float((a * b).sum(-1).mean())

        own = (mean(query, key) + mean(asking, other)) / 2
        crossed = (mean(query, other) + mean(asking, key)) / 2
        rows.append((mean(key, other), own, crossed))
        print(f"| {', '.join(pair)} | {rows[-1][0]:.2f} | {own:.3f} | {crossed:.3f} |")
    print(
        f"| all | {fmean(r[0] for r in rows):.2f} | {fmean(r[1] for r in rows):.3f} | {fmean(r[2] for r in rows):.3f} |"
    )


if __name__ == "__main__":
    main()
