"""A curriculum that waits: the task gets harder only once it is mastered at the level it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltamem.episodes.difficulty import Difficulty

POOLS: tuple[Difficulty, ...] = (
    Difficulty(pool=32, facts=2),
    Difficulty(pool=128, facts=2),
    Difficulty(pool=512, facts=2),
    Difficulty(pool=2048, facts=2),
    Difficulty(facts=2),
)
"""Pool of values: with all of them at once nothing was learnt in 85 steps."""

_CHAT = Difficulty(unknown=0.8, nothing=0.1, noted=0.3, reworded=0.35)

CHATS: tuple[Difficulty, ...] = (
    replace(_CHAT, facts=3, small_talk=1, long_values=0.15, corrections=0.1, earlier=0.25),
    replace(
        _CHAT,
        facts=4,
        small_talk=1,
        long_values=0.25,
        asked_before=0.1,
        corrections=0.15,
        earlier=0.4,
        others=0.05,
    ),
    replace(
        _CHAT,
        facts=6,
        small_talk=2,
        long_values=0.3,
        asked_before=0.2,
        corrections=0.15,
        earlier=0.4,
        others=0.1,
        lists=0.05,
        sessions=0.3,
    ),
)
"""Facts side by side, and what a chat brings with it: distance, values of several tokens, corrections, questions about
what was never told, earlier turns in the window, other people, several sessions. Where an adapter that has learnt
something begins."""

STAGES = POOLS + CHATS


@dataclass
class WaitingCurriculum:
    """Moves to the next stage when the running accuracy on values passes a mark.

    Attributes:
        stages: difficulties in order.
        mark: accuracy that ends a stage.
        patience: fewest steps in a stage.
        memory: factor of the running average.
        stage: index of the current stage.
        accuracy: running accuracy in it.
        steps: steps spent in it.
    """

    stages: Sequence[Difficulty] = STAGES
    mark: float = 0.5
    patience: int = 10
    memory: float = 0.9
    stage: int = 0
    accuracy: float = 0.0
    steps: int = 0

    @property
    def difficulty(self) -> Difficulty:
        """What the next episodes should be like."""
        return self.stages[self.stage]

    def update(self, accuracy: float) -> bool:
        """Take in a step's accuracy; true when the stage changed."""
        self.steps += 1
        self.accuracy = self.memory * self.accuracy + (1 - self.memory) * accuracy
        if self.stage + 1 < len(self.stages) and self.steps >= self.patience and self.accuracy > self.mark:
            self.stage, self.steps, self.accuracy = self.stage + 1, 0, 0.3
            return True
        return False
