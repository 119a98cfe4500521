"""Ordinary talk that memory is to leave alone: prompts, the frozen backbone's replies, and the distance from them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from deltamem.episodes.batches import ReadBatch, ask_tokens, read_batch
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.evaluation.ordinary import divergence
from deltamem.paths import write_private

REPLIES_FILE = "frozen_replies.json"


class OrdinaryTalk:
    """Prompts with the frozen backbone's replies to them.

    Args:
        passes: backbone and memory.
        people: its prompts are asked; it learns the replies to put into histories.
        reply_tokens: length of the replies.
        seed: picks the statements that are asked as well.
        directory: replies are kept here, so that a resumed run need not make them again.
        report: called with what is being done and the share done.
    """

    def __init__(
        self,
        passes: Passes,
        people: SyntheticPeople,
        reply_tokens: int,
        seed: int,
        directory: Path,
        report: Callable[[str, float], None] | None = None,
    ) -> None:
        self._passes = passes
        self._reply_tokens = reply_tokens
        self._known, self._report = directory / REPLIES_FILE, report
        self.questions = people.learn_replies(self._replies, random.Random(seed))
        self._frozen_logits: dict[int, Tensor] = {}

    def others(self, prompts: Sequence[str]) -> list[Question]:
        """Other prompts with the frozen replies to them, which no history holds; without those that get none."""
        return [
            Question(p, said, kind="ordinary") for p, said in zip(prompts, self._replies(prompts), strict=True) if said
        ]

    def _replies(self, prompts: Sequence[str]) -> list[str]:
        try:
            known: dict[str, str] = json.loads(self._known.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        new = sorted({p for p in prompts if p not in known}, key=lambda p: (len(p), p))
        for start in range(0, len(new), 32):
            part = new[start : start + 32]
            asks = [ask_tokens(self._passes.form, Question(p, "")) for p in part]
            known |= dict(zip(part, self._passes.reply(asks, None, self._reply_tokens), strict=True))
            if self._report is not None:
                self._report("letting the frozen backbone reply", start / len(new))
        if new:
            write_private(self._known, json.dumps(known, ensure_ascii=False).encode())
        return [known[p] for p in prompts]

    def choose(self, rng: random.Random, count: int) -> list[int]:
        """Numbers of `count` prompts."""
        return rng.sample(range(len(self.questions)), min(count, len(self.questions)))

    def batch(self, chosen: Sequence[tuple[int, int]]) -> ReadBatch:
        """Prompts with the frozen replies, for (row of a state, number of the prompt)."""
        return read_batch(self._passes.form, [(row, self.questions[i]) for row, i in chosen])

    def distance(self, chosen: Sequence[tuple[int, int]], logits: Tensor) -> Tensor:
        """KL to the frozen backbone, summed over tokens, of the logits of that batch."""
        return divergence(logits, torch.cat([self._frozen(i) for _, i in chosen]))

    def _frozen(self, i: int) -> Tensor:
        """What the frozen backbone says to prompt i, (tokens, vocabulary), worked out once."""
        if i not in self._frozen_logits:
            with torch.no_grad():
                alone = read_batch(self._passes.form, [(0, self.questions[i])])
                self._frozen_logits[i] = self._passes.read(alone, None).to(torch.bfloat16)
        return self._frozen_logits[i]
