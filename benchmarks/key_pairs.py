"""What a key is to be made of, and in which directions of that: facts found in a memory of scalars, without training.

    python benchmarks/key_pairs.py --episodes 1200 --ranks 8,32
    python benchmarks/key_pairs.py --episodes 1200 --ranks 64 --fading 0.7 --own-share 0.3

Keys are made of a value's own token, the one before it, or both; with `--fading` the one before passes on what it was
lent itself. Keys and queries are directions in which told values, and the places where they are asked for, agree on
what a fact is about (closed form, `deltamem/training/places/directions.py`): the first of all in every layer, those
dealt among layers, those in which names of one sort differ, or what a start takes. Of held-out people, with phrasings
and values that were not among those, facts are written by the delta rule in every layer, with write gates at 0.9, and
how much a query reads of each is added up over layers. Columns: how often most is read of the fact that is asked for,
of so many, of eight that differ in a noun alone, and of two whose nouns are the nearest, of which the first is asked
for, or the second.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.episode import Question
from deltamem.episodes.grouped import grouped
from deltamem.episodes.passes import Passes
from deltamem.episodes.sorts import sort_of
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places.bank import Bank, Fact
from deltamem.training.places.builder import build_bank
from deltamem.training.places.directions import SHARES, Directions, Share
from deltamem.training.places.names import pairs
from deltamem.training.places.nearness import nearest
from deltamem.training.presets import PRESETS

PLANS = {
    "the first": (Share("all"),),
    "dealt among 2": tuple(Share("all", n) for n in range(2)),
    "dealt among 4": tuple(Share("all", n) for n in range(4)),
    "of sorts, among 2": tuple(Share("sort", n) for n in range(2)),
    "as a start takes them": SHARES,
}
KINDS = 10
"""Kinds of facts that differ in a noun alone there must be for those to be compared with each other."""
GATE = 0.9
TRIES = 600

Asked = tuple[list[Fact], int]
"""Facts in the order they are told, and which of them is asked for."""


def telling(bank: Bank, what: str, own_share: float) -> Tensor:
    """What keys are made of, (layers, n, hidden size)."""
    own, before = own_share * bank.told.float(), bank.before.float()
    return {"own": own, "before": before, "pair": own + before}[what]


def units(learnt: Bank, tested: Bank, what: str, own_share: float, rank: int, plan: str) -> tuple[Tensor, Tensor]:
    """Keys of everything told and queries of every place of the tested bank, (layers, n, rank)."""
    named = pairs(learnt)
    directions = Directions(named, PLANS[plan])
    sources, others = telling(learnt, what, own_share), telling(tested, what, own_share)
    keys, queries = [], []
    for i, source in enumerate(sources):
        k, q = directions.fitted(i, source[named.told], learnt.places[i][named.asked].float(), rank)
        keys.append(F.normalize(others[i] @ k.T, dim=-1))
        queries.append(F.normalize(tested.places[i].float() @ q.T, dim=-1))
    return torch.stack(keys), torch.stack(queries)


class Tested:
    """Facts of a bank that can be asked for, and how they are drawn."""

    def __init__(self, bank: Bank) -> None:
        first = ((f, next((p for p in f.asked if bank.values[p]), None)) for f in bank.facts)
        self._first = {id(f): p for f, p in first if p is not None and f.told and not f.early and not f.noted}
        self._facts = [f for f in bank.facts if id(f) in self._first]
        sorts = grouped((sort_of(f.topic.relation), f) for f in self._facts)
        self._large = [some for some in sorts.values() if len({f.topic for f in some}) >= KINDS]
        self._of, self._near = grouped((f.topic.relation, f) for f in self._facts), nearest(bank)

    def among(self, count: int, alike: bool = False) -> Callable[[random.Random], Asked]:
        """Draws so many of different topics; `alike` is for those of one sort."""

        def draw(rng: random.Random) -> Asked:
            some = rng.choice(self._large) if alike else self._facts
            chosen: dict[object, Fact] = {}
            while len(chosen) < count:
                fact = rng.choice(some)
                chosen.setdefault(fact.topic, fact)
            return list(chosen.values()), rng.randrange(count)

        return draw

    def close(self, which: int) -> Callable[[random.Random], Asked]:
        """Draws two whose nouns are among the nearest, of which the first (0) or the second (1) is asked for."""

        def draw(rng: random.Random) -> Asked:
            while True:
                one = rng.choice(self._facts)
                near = [r for r in self._near.get(one.topic.relation, ())[:2] if r in self._of]
                if near:
                    return [one, rng.choice(self._of[rng.choice(near)])], which

        return draw

    def found(self, keys: Tensor, queries: Tensor, draw: Callable[[random.Random], Asked]) -> tuple[float, float]:
        """How often most is read of the fact that is asked for, and how much of it is read."""
        rng, right, own = random.Random(1), 0, 0.0
        for _ in range(TRIES):
            facts, which = draw(rng)
            shares = read(keys[:, [f.told[0] for f in facts]], queries[:, self._first[id(facts[which])]])
            right += int(shares.argmax()) == which
            own += float(shares[which])
        return right / TRIES, own / TRIES


def read(keys: Tensor, query: Tensor) -> Tensor:
    """How much of each value is read, (n,), after keys (layers, n, r) were written one after another by the delta rule;
    the query is (layers, r).
    """
    shares, left = [], query
    for key in reversed(keys.unbind(1)):
        share = GATE * (key * left).sum(-1)
        shares.append(share.mean())
        left = left - share[:, None] * key
    return torch.stack(shares[::-1])


def figures(tested: Tested, keys: Tensor, queries: Tensor) -> Sequence[tuple[float, float]]:
    """The columns of a row."""
    draws = [tested.among(4), tested.among(32), tested.among(8, alike=True), tested.close(0), tested.close(1)]
    return [tested.found(keys, queries, draw) for draw in draws]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--episodes", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--ranks", default="8,32")
    parser.add_argument("--fading", type=float, default=0.0)
    parser.add_argument("--own-share", type=float, default=1.0, help="what a value's own token counts for")
    parser.add_argument("--first-layer", type=int, default=4)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, "cpu", dtype=torch.float32, quantize="none")
    layers = tuple(range(options.first_layer, backbone.model.config.num_hidden_layers))
    config = replace(PRESETS["places"].config, keys="pair", fading=options.fading, target_layers=layers)
    passes = Passes(DeltaMemory.attach(backbone.model, config), ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    people = SyntheticPeople(backbone.tokenizer)
    idle = [Question("Hello", "Hello! How can I help?", kind="ordinary")]
    # How replies begin is nobody's key.
    learnt = build_bank(passes, people, idle, options.episodes, begun=False)
    held = build_bank(passes, people, idle, options.held_out, seed=1, split="heldout", begun=False)
    tested = Tested(held)
    columns = ["of 4", "of 32", "of 8 alike", "close, the first", "close, the second"]
    print("| keys from | r | directions | " + " | ".join(columns) + " | read of the own one, of 4 |")
    print("| --- | --- | --- |" + " --- |" * (len(columns) + 1))
    for rank in [int(rank) for rank in options.ranks.split(",")]:
        for what in ("own", "before", "pair"):
            for plan in PLANS:
                keys, queries = units(learnt, held, what, options.own_share, rank, plan)
                found = figures(tested, keys, queries)
                row = " | ".join(f"{100 * share:.0f} %" for share, _ in found)
                print(f"| {what} | {rank} | {plan} | {row} | {found[0][1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
