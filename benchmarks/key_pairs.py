"""What a key is to be made of: a value's own token, the one before it, or both; or all that came before it.

    python benchmarks/key_pairs.py --episodes 1200 --ranks 8,32
    python benchmarks/key_pairs.py --episodes 1200 --ranks 8,32 --fading 0.7

Keys and queries are the directions in which the hidden states of told values, and of the places where they are asked
for, agree most on what a fact is about (closed form, no training). Of held-out people, with phrasings and values that
were not among those: how often the right fact's key is nearest to a question's query, summed over layers, among as many
facts of different kinds, and among as many that differ in a noun alone. With `--fading` the token before passes on what
it was lent itself. "Dealt" among two layers, every second one takes the directions after the first.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.episode import Question
from deltamem.episodes.grouped import grouped
from deltamem.episodes.passes import Passes
from deltamem.episodes.relation_data import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places.bank import Bank, Fact
from deltamem.training.places.builder import build_bank
from deltamem.training.places.start import agreeing, pairs
from deltamem.training.presets import PRESETS

AMONG = (2, 4, 8, 16, 32)
ALIKE = (2, 4, 8)
DEALT = (1, 2, 3)
"""Layers among which directions are dealt."""
KINDS = 10
"""Kinds of facts that differ in a noun alone there must be for those to be compared with each other."""
TRIES = 1500


def telling(bank: Bank, what: str) -> Tensor:
    """What keys are made of, (layers, n, hidden size)."""
    parts = {"own": [bank.told], "before": [bank.before], "pair": [bank.told, bank.before]}[what]
    return torch.stack([part.float() for part in parts]).sum(0)


class FewOpenings(SyntheticPeople):
    """Openings are nobody's keys: a few are enough for a bank."""

    def openings(self, rng: random.Random) -> list[Question]:
        """The first two dozen."""
        return super().openings(rng)[:24]


def units(learnt: Bank, tested: Bank, what: str, rank: int) -> tuple[Tensor, Tensor]:
    """Keys of everything told and queries of every place of the tested bank, (layers, n, rank), the strongest first."""
    named = pairs(learnt)
    sources, others = telling(learnt, what), telling(tested, what)
    keys, queries = [], []
    for i, source in enumerate(sources):
        k, q = agreeing(
            source[named.told], named.told_about, learnt.places[i][named.asked].float(), named.asked_about, rank
        )
        keys.append(others[i] @ k.T)
        queries.append(tested.places[i].float() @ q.T)
    return torch.stack(keys), torch.stack(queries)


def share_of(units: Tensor, rank: int, dealt: int) -> Tensor:
    """The directions of each layer, (layers, n, rank), where the first ones are dealt among so many layers."""
    return torch.stack([x[:, i % dealt * rank :][:, :rank] for i, x in enumerate(units)])


def found(tested: Bank, keys: Tensor, queries: Tensor, among: int, alike: bool = False) -> tuple[float, float]:
    """Share of questions whose own fact is nearest, and the mean cosine with it; `alike` is for facts of one sort."""
    keys, queries = F.normalize(keys, dim=-1), F.normalize(queries, dim=-1)
    rng = random.Random(1)
    places = {id(f): [p for p in f.asked if tested.values[p]] for f in tested.facts}
    facts = [f for f in tested.facts if places[id(f)]]
    sorts = grouped((sort_of(f.topic.relation), f) for f in facts)
    large = [some for some in sorts.values() if len({f.topic for f in some}) >= KINDS]
    right, near = 0, 0.0
    for _ in range(TRIES):
        some = rng.choice(large) if alike else facts
        fact = rng.choice(some)
        chosen: dict[object, Fact] = {fact.topic: fact}
        while len(chosen) < among:
            other = rng.choice(some)
            chosen.setdefault(other.topic, other)
        own = keys[:, [f.told[0] for f in chosen.values()]]
        cosines = torch.einsum("lnr,lr->n", own, queries[:, places[id(fact)][0]]) / len(keys)
        right += int(cosines.argmax()) == 0
        near += float(cosines[0])
    return right / TRIES, near / TRIES


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--episodes", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--ranks", default="8,32")
    parser.add_argument("--fading", type=float, default=0.0)
    parser.add_argument("--first-layer", type=int, default=4)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, "cpu", dtype=torch.float32, quantize="none")
    layers = tuple(range(options.first_layer, backbone.model.config.num_hidden_layers))
    config = replace(PRESETS["places"].config, keys="pair", fading=options.fading, target_layers=layers)
    passes = Passes(DeltaMemory.attach(backbone.model, config), ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    people = FewOpenings(backbone.tokenizer)
    idle = [Question("Hello", "Hello! How can I help?", kind="ordinary")]
    learnt = build_bank(passes, people, idle, options.episodes)
    tested = build_bank(passes, people, idle, options.held_out, seed=1, split="heldout")
    columns = [f"of {n}" for n in AMONG] + [f"of {n} alike" for n in ALIKE]
    print("| keys from | r | dealt among | " + " | ".join(columns) + " | cosine with the own key |")
    print("| --- | --- | --- |" + " --- |" * (len(columns) + 1))
    ranks = [int(rank) for rank in options.ranks.split(",")]
    for what in ("own", "before", "pair"):
        keys, queries = units(learnt, tested, what, max(ranks) * max(DEALT))
        for rank, dealt in product(ranks, DEALT):
            k, q = (share_of(some, rank, dealt) for some in (keys, queries))
            figures = [found(tested, k, q, n) for n in AMONG] + [found(tested, k, q, n, alike=True) for n in ALIKE]
            row = " | ".join(f"{100 * share:.0f} %" for share, _ in figures)
            print(f"| {what} | {rank} | {dealt} | {row} | {figures[0][1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
