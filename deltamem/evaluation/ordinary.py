"""Is an ordinary question answered as the frozen backbone answers it, whatever is in the state?"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ask_tokens, read_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.run import Report
from deltamem.evaluation.summary import interval
from deltamem.state import MemoryState

WORDS = 10
"""Words of a reply that are compared."""


def ordinary(
    passes: Passes,
    facts: tuple[int, ...] = (1, 4, 8),
    tokens: int = 24,
    batch: int = 16,
    seed: int = 0,
    report: Report = lambda *_: None,
) -> list[dict[str, Any]]:
    """Ask the held-out ordinary prompts with states in which a made-up person told some facts.

    Returns:
        Per number of facts: ``facts``, ``n`` prompts, ``kl`` in nats a token of the frozen reply, ``same``: the share
        of greedy replies whose first ten words are the frozen ones (each mean, low, high), and ``replies``.
    """
    people = SyntheticPeople(passes.form.tokenizer)
    prompts = people.ordinary["heldout"]
    asks = [ask_tokens(passes.form, Question(p, "")) for p in prompts]
    total = (len(facts) + 1) * len(prompts)
    frozen: list[str] = []
    for start in range(0, len(asks), batch):
        report("asking: frozen", start, total)
        frozen += passes.reply(asks[start : start + batch], None, tokens)
    rows = []
    for number, count in enumerate(facts, 1):
        rng = random.Random(f"ordinary-{seed}-{count}")
        told = {str(i): people.episode(rng, Difficulty(), "heldout", facts=count).history for i in range(len(prompts))}
        states = write_histories(passes, told, 1024, batch)
        kl: list[float] = []
        replies: list[dict[str, str]] = []
        for start in range(0, len(prompts), batch):
            report(f"asking: {count} facts", number * len(prompts) + start, total)
            chosen = range(start, min(start + batch, len(prompts)))
            state = MemoryState.stack([states[str(i)] for i in chosen])
            said = passes.reply([asks[i] for i in chosen], state, tokens)
            replies += [
                {"prompt": prompts[i], "frozen": frozen[i], "memory": s} for i, s in zip(chosen, said, strict=True)
            ]
            for row, i in enumerate(chosen):
                one = read_batch(passes.form, [(0, Question(prompts[i], frozen[i]))])
                with torch.no_grad():
                    ours, theirs = passes.read(one, state.select([row])), passes.read(one, None)
                # The end of a reply that was cut off is no end: the last position is left out.
                kl.append(float(divergence(ours[:-1], theirs[:-1])) / max(1, len(ours) - 1))
        same = [float(r["memory"].split()[:WORDS] == r["frozen"].split()[:WORDS]) for r in replies]
        row_of: dict[str, Any] = {"facts": count, "n": len(prompts), "replies": replies}
        for name, values in (("kl", kl), ("same", same)):
            row_of[name] = dict(zip(("mean", "low", "high"), interval(values), strict=True))
        rows.append(row_of)
    report("asking", total, total)
    return rows


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Sum over tokens of KL(teacher || ours) in nats, of logits (M, vocabulary)."""
    ours = F.log_softmax(logits.float(), -1)
    theirs = F.log_softmax(teacher.float().to(logits.device), -1)
    return F.kl_div(ours, theirs, log_target=True, reduction="sum")
