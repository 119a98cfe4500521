"""The knobs of a training run, with the values that made the adapter that ships."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run.

    Attributes:
        steps: optimizer steps.
        batch: histories per step; each is asked about all its facts, up to `questions` in all.
        questions: most questions per step.
        bucket: how many histories of like length are written together (and twice as many questions read).
        learning_rate: peak of AdamW.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which a cosine takes the rate to zero.
        clip: largest gradient norm.
        rest_weight: weight of the answer's other tokens beside the value's.
        ordinary: ordinary questions per step on which memory is to change nothing.
        ordinary_weight: weight of the KL to the frozen backbone there.
        reply_tokens: length of the backbone's own replies that are put into histories.
        seed: of everything random.
        local_gradient: let the gradient reach the writer through the state alone (see `DeltaMemory.writing`).
        eval_every: steps between evaluations on held-out episodes.
        eval_questions: questions per number of facts in one of those.
        save_every: steps between checkpoints.
    """

    steps: int = 1500
    batch: int = 16
    questions: int = 32
    bucket: int = 4
    learning_rate: float = 2e-3
    warmup: int = 30
    decay: float = 0.4
    clip: float = 1.0
    rest_weight: float = 0.3
    ordinary: int = 4
    ordinary_weight: float = 1.0
    reply_tokens: int = 20
    seed: int = 0
    local_gradient: bool = True
    eval_every: int = 100
    eval_questions: int = 32
    save_every: int = 50

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        start = self.steps * (1 - self.decay)
        if step < start:
            return self.learning_rate
        share = (step - start) / max(1.0, self.steps - start)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for checkpoints and cards."""
        return asdict(self)
