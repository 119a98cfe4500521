"""Is an ordinary question answered as the frozen backbone answers it, whatever is in the state?

Of three kinds: held-out ordinary prompts; the same after other turns in their window, in which things are told and
asked; and impersonal questions about the very thing that was told of oneself ("What name would suit a dog?" with the
name of the user's dog in the memory).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ask_tokens, read_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question, Turn, in_window
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
_TURNS = (1, 2, 3)
"""Numbers of turns that stand before a prompt in its window."""


class _Asked(NamedTuple):
    prompt: str
    told: Relation | None = None
    """What is told before, whatever else is; None for anything."""
    later: bool = False
    """It comes after other turns in its window."""


class _Put(NamedTuple):
    """What is asked, and what was said to the memory before."""

    question: Question
    history: Sequence[Turn]


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
    prompts = people.ordinary["heldout"]
    kinds = {
        "ordinary": [_Asked(p) for p in prompts],
        "after others": [_Asked(p, later=True) for p in prompts],
        "impersonal": _impersonal(people),
    }
    # The frozen backbone is asked once, but where what stands in the window hangs on what is told.
    total = sum(len(asked) * (len(facts) + (len(facts) if asked[0].later else 1)) for asked in kinds.values())
    done, rows = 0, []
    for kind, asked in kinds.items():
        frozen: list[str] = []
        for count in facts:
            rng = random.Random(f"ordinary-{seed}-{count}")
            put = [_put(people, rng, count, a) for a in asked]
            asking = _Asking(passes, [p.question for p in put], tokens, batch, lambda s, n: report(s, n, total))
            if not frozen or asked[0].later:
                frozen = asking.replies(None, f"asking: {kind}, frozen", done)
                done += len(asked)
            stage = f"asking: {kind}, {count} facts"
            report(stage, done, total)  # before histories are written
            written = write_histories(passes, {str(i): p.history for i, p in enumerate(put)}, 1024, batch)
            states = [written[str(i)] for i in range(len(put))]
            said = asking.replies(states, stage, done)
            kl = [asking.distance(i, reply, state) for i, (reply, state) in enumerate(zip(frozen, states, strict=True))]
            replies = [
                {"prompt": a.prompt, "frozen": theirs, "memory": ours}
                for a, theirs, ours in zip(asked, frozen, said, strict=True)
            ]
            rows.append(_row(kind, count, kl, replies))
            done += len(asked)
    report("asking", total, total)
    return rows


class _Asking:
    """Questions that are put to the backbone with states, or without."""

    def __init__(
        self, passes: Passes, questions: Sequence[Question], tokens: int, batch: int, report: Callable[[str, int], None]
    ) -> None:
        self._passes, self._questions, self._tokens = passes, questions, tokens
        self._batch, self._report = batch, report

    def replies(self, states: Sequence[MemoryState] | None, stage: str, done: int) -> list[str]:
        """What is said to each; `stage` and, counted on from `done`, the questions are reported."""
        found: list[str] = []
        for start in range(0, len(self._questions), self._batch):
            self._report(stage, done + start)
            some = slice(start, start + self._batch)
            asks = [ask_tokens(self._passes.form, question) for question in self._questions[some]]
            found += self._passes.reply(asks, MemoryState.stack(states[some]) if states else None, self._tokens)
        return found

    def distance(self, number: int, reply: str, state: MemoryState) -> float:
        """KL to the frozen backbone in nats a token of its reply to a question."""
        one = read_batch(self._passes.form, [(0, replace(self._questions[number], answer=reply))])
        with torch.no_grad():
            ours, theirs = self._passes.read(one, state), self._passes.read(one, None)
        # The end of a reply that was cut off is no end: the last position is left out.
        return float(divergence(ours[:-1], theirs[:-1])) / max(1, len(ours) - 1)


def _impersonal(people: SyntheticPeople) -> list[_Asked]:
    """Some of those held out, always the same."""
    of = {relation.id: relation for relation in people.families}
    rng = random.Random("impersonal")
    return [_Asked(q.text, told=of.get(q.relation)) for q in rng.sample(impersonal(rng, "heldout", 1), IMPERSONAL)]


def _put(people: SyntheticPeople, rng: random.Random, count: int, asked: _Asked) -> _Put:
    difficulty, among = Difficulty(), None
    if asked.told is not None:
        among = [asked.told, *rng.sample([r for r in people.relations if r.id != asked.told.id], count - 1)]
    if asked.later:
        difficulty = replace(difficulty, unknown=0.5, natural=0.5)
    episode = people.episode(rng, difficulty, "heldout", facts=count, among=among)
    turns = [*episode.history, *(Turn(q.text, q.answer) for q in episode.questions)]
    before = rng.sample(turns, min(rng.choice(_TURNS), len(turns))) if asked.later else ()
    return _Put(Question(asked.prompt, "", earlier=in_window(before)), episode.history)


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
