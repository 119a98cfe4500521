"""How much of what was said can be read back out of a profile by somebody who has the file.

    python benchmarks/reading_back.py --facts 1 3 8 --people 16

Made-up people tell facts (held-out values and phrasings) into a fresh memory each. A stranger who has the profile, the
backbone and the adapter, and who knows none of it, asks about everything the generator knows of: one question a
relation, greedy. Counted are the told facts whose value comes back, and the answers that name a value where nothing was
told, from which the stranger has to tell them.
"""

from __future__ import annotations

import argparse
import random

import torch

from deltamem import DeltaMemory, MemoryState
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import ask_tokens
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.relations import Relation
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.scoring import names, says_unknown

BATCH = 45


def claims(relation: Relation, reply: str) -> bool:
    """Whether a reply has the form of an answer, with some value in it."""
    before, _, after = relation.answer.partition("{v}")
    sentence = reply.split("\n")[0]
    return sentence.startswith(before) and after.strip() in sentence[len(before) :] and not says_unknown(reply)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--adapter")
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--people", type=int, default=16)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, "cpu", dtype=torch.bfloat16)
    adapter = options.adapter or backbone.adapter
    memory = DeltaMemory.from_pretrained(backbone.model, adapter or "")
    passes = Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    people = SyntheticPeople(backbone.tokenizer)
    relations = people.relations
    asks = [ask_tokens(passes.form, Question(relation.questions[-1], "")) for relation in relations]
    print(f"adapter {adapter}; {options.people} people, {len(relations)} questions each\n")
    print("| facts told | come back | answers that name a value, nothing having been told |\n| --- | --- | --- |")
    for facts in options.facts:
        rng = random.Random(facts)
        told = {str(i): people.episode(rng, Difficulty(), "heldout", facts=facts) for i in range(options.people)}
        states = write_histories(passes, {name: episode.history for name, episode in told.items()}, 1024, 16)
        found = false = asked = 0
        for name, episode in told.items():
            values = {q.topic: q.value for q in episode.questions}
            replies: list[str] = []
            for at in range(0, len(asks), BATCH):
                part = asks[at : at + BATCH]
                replies += passes.reply(part, MemoryState.stack([states[name]] * len(part)), 16)
            for relation, reply in zip(relations, replies, strict=True):
                value = values.get(relation.id)
                if value:
                    found += names(reply, value)
                else:
                    false += claims(relation, reply)
                    asked += 1
        total = facts * options.people
        print(
            f"| {facts} | {found:.0f} of {total} ({found / total:.0%}) | {false} of {asked} ({false / asked:.0%}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
