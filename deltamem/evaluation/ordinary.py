"""Is an ordinary question answered as the frozen backbone answers it, whatever is in the state?

Of two kinds: held-out ordinary prompts, and impersonal questions about the very thing that was told of oneself ("What
name would suit a dog?" with the name of the user's dog in the memory).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ask_tokens, read_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question, Turn
from deltamem.episodes.impersonal import impersonal
from deltamem.episodes.passes import Passes
from deltamem.episodes.relations import Relation
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.run import Report
from deltamem.evaluation.summary import interval
from deltamem.state import MemoryState

WORDS = 10
"""Words of a reply that are compared."""
IMPERSONAL = 96
"""Questions of that kind."""


class _Asked(NamedTuple):
    prompt: str
    told: Relation | None
    """What is told before, whatever else is; None for anything."""


def ordinary(
    passes: Passes,
    facts: tuple[int, ...] = (1, 4, 8),
    tokens: int = 24,
    batch: int = 16,
    seed: int = 0,
    report: Report = lambda *_: None,
) -> list[dict[str, Any]]:
    """Ask held-out prompts with states in which a made-up person told some facts.

    Returns:
        Per kind of prompt and number of facts: ``kind``, ``facts``, ``n`` prompts, ``kl`` in nats a token of the frozen
        reply, ``same``: the share of greedy replies whose first ten words are the frozen ones (each mean, low, high),
        and ``replies``.
    """
    people = SyntheticPeople(passes.form.tokenizer)
    kinds = {"ordinary": [_Asked(p, None) for p in people.ordinary["heldout"]], "impersonal": _impersonal(people)}
    total = (len(facts) + 1) * sum(map(len, kinds.values()))
    done, rows = 0, []
    for kind, asked in kinds.items():
        prompts = [a.prompt for a in asked]
        asking = _Asking(passes, prompts, tokens, batch, lambda stage, n: report(stage, n, total))
        frozen = asking.replies(None, f"asking: {kind}, frozen", done)
        for count in facts:
            done += len(asked)
            stage = f"asking: {kind}, {count} facts"
            report(stage, done, total)  # before histories are written
            rng = random.Random(f"ordinary-{seed}-{count}")
            told = {str(i): _history(people, rng, count, a.told) for i, a in enumerate(asked)}
            written = write_histories(passes, told, 1024, batch)
            states = [written[name] for name in told]
            said = asking.replies(states, stage, done)
            kl = [asking.distance(i, reply, state) for i, (reply, state) in enumerate(zip(frozen, states, strict=True))]
            replies = [
                {"prompt": prompt, "frozen": theirs, "memory": ours}
                for prompt, theirs, ours in zip(prompts, frozen, said, strict=True)
            ]
            rows.append(_row(kind, count, kl, replies))
        done += len(asked)
    report("asking", total, total)
    return rows


class _Asking:
    """Prompts that are put to the backbone with states, or without."""

    def __init__(
        self, passes: Passes, prompts: Sequence[str], tokens: int, batch: int, report: Callable[[str, int], None]
    ) -> None:
        self._passes, self._prompts, self._tokens = passes, prompts, tokens
        self._batch, self._report = batch, report

    def replies(self, states: Sequence[MemoryState] | None, stage: str, done: int) -> list[str]:
        """What is said to each; `stage` and, counted on from `done`, the prompts are reported."""
        found: list[str] = []
        for start in range(0, len(self._prompts), self._batch):
            self._report(stage, done + start)
            some = slice(start, start + self._batch)
            asks = [ask_tokens(self._passes.form, Question(p, "")) for p in self._prompts[some]]
            found += self._passes.reply(asks, MemoryState.stack(states[some]) if states else None, self._tokens)
        return found

    def distance(self, number: int, reply: str, state: MemoryState) -> float:
        """KL to the frozen backbone in nats a token of its reply to a prompt."""
        one = read_batch(self._passes.form, [(0, Question(self._prompts[number], reply))])
        with torch.no_grad():
            ours, theirs = self._passes.read(one, state), self._passes.read(one, None)
        # The end of a reply that was cut off is no end: the last position is left out.
        return float(divergence(ours[:-1], theirs[:-1])) / max(1, len(ours) - 1)


def _impersonal(people: SyntheticPeople) -> list[_Asked]:
    """Some of those held out, always the same."""
    of = {relation.id: relation for relation in people.families}
    rng = random.Random("impersonal")
    return [_Asked(q.text, of.get(q.relation)) for q in rng.sample(impersonal(rng, "heldout", 1), IMPERSONAL)]


def _history(people: SyntheticPeople, rng: random.Random, count: int, told: Relation | None) -> Sequence[Turn]:
    if told is None:
        return people.episode(rng, Difficulty(), "heldout", facts=count).history
    among = [told, *rng.sample([r for r in people.relations if r.id != told.id], count - 1)]
    return people.episode(rng, Difficulty(), "heldout", facts=count, among=among).history


def _row(kind: str, facts: int, kl: Sequence[float], replies: Sequence[dict[str, str]]) -> dict[str, Any]:
    same = [float(r["memory"].split()[:WORDS] == r["frozen"].split()[:WORDS]) for r in replies]
    row: dict[str, Any] = {"kind": kind, "facts": facts, "n": len(replies), "replies": list(replies)}
    for name, values in (("kl", kl), ("same", same)):
        row[name] = dict(zip(("mean", "low", "high"), interval(values), strict=True))
    return row


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Sum over tokens of KL(teacher || ours) in nats, of logits (M, vocabulary)."""
    ours = F.log_softmax(logits.float(), -1)
    theirs = F.log_softmax(teacher.float().to(logits.device), -1)
    return F.kl_div(ours, theirs, log_target=True, reduction="sum")
