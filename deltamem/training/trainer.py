"""The training loop. It yields what happened at each step and draws nothing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deltamem.adapter import save_adapter
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.episode import Episode
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.state import MemoryState
from deltamem.training.checkpoints import load_checkpoint, save_checkpoint
from deltamem.training.curriculum import WaitingCurriculum
from deltamem.training.heldout import heldout_recall
from deltamem.training.objective import RecallLoss, recall_loss
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.recipe import Recipe


@dataclass(frozen=True)
class StepReport:
    """What a step did; `recall` is there on steps with an evaluation."""

    step: int
    loss: float
    value_loss: float
    accuracy: float
    divergence: float
    stage: int
    rate: float
    seconds: float
    recall: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains the adapter of an attached memory.

    Args:
        passes: backbone, memory and chat format.
        recipe: hyperparameters.
        directory: where the run lives: checkpoint, `metrics.jsonl`, and the adapter at the end.
        people: the generator of episodes.
        own: episodes of one's own; `own_share` of a batch comes from them.
        own_share: see `own`.
    """

    def __init__(
        self,
        passes: Passes,
        recipe: Recipe,
        directory: Path,
        people: SyntheticPeople,
        own: Sequence[Episode] = (),
        own_share: float = 0.5,
    ) -> None:
        self.passes, self.recipe, self.directory, self.people = passes, recipe, directory, people
        self.own, self.own_share = list(own), own_share if own else 0.0
        self.curriculum = WaitingCurriculum()
        self.step = 0
        self.seconds = 0.0
        memory = passes.memory
        memory.adapter.requires_grad_(True)
        self.parameters = dict(memory.adapter.named_parameters())
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._ordinary: OrdinaryTalk | None = None

    # Progress on disk

    def save(self) -> None:
        """Write a checkpoint."""
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "stage": self.curriculum.stage,
            "stage_steps": self.curriculum.steps,
            "stage_accuracy": self.curriculum.accuracy,
            "recipe": self.recipe.to_dict(),
        }
        save_checkpoint(self.directory, dict(self.parameters), self.optimizer, progress)

    def resume(self) -> None:
        """Go on where the run's last checkpoint was."""
        progress = load_checkpoint(self.directory, dict(self.parameters), self.optimizer)
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.curriculum.stage = min(progress["stage"], len(self.curriculum.stages) - 1)
        self.curriculum.steps = progress["stage_steps"]
        self.curriculum.accuracy = progress["stage_accuracy"]

    def _log(self, report: StepReport) -> None:
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(report)) + "\n")

    # The loop

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, saving on the way; the adapter is in `directory` afterwards."""
        recipe = self.recipe
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ordinary = OrdinaryTalk(self.passes, self.people, recipe.reply_tokens, recipe.seed, self.directory)
        while self.step < recipe.steps:
            report = self._one_step()
            self._log(report)
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                self.save()
                save_adapter(self.directory, self.passes.memory.config, self.passes.memory.adapter_tensors())
            yield report

    def _one_step(self) -> StepReport:
        recipe, memory = self.recipe, self.passes.memory
        began = time.monotonic()
        # All randomness of a step comes from its number, so a resumed run is the unbroken one.
        rng = random.Random(f"{recipe.seed}-{self.step}")
        rate = recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        episodes = self._episodes(rng)
        state = self._write(episodes)
        recall = self._recall_loss(rng, episodes, state)
        loss = recall.value + recipe.rest_weight * recall.rest
        divergence = 0.0
        if self._ordinary is not None and recipe.ordinary:
            kl = self._ordinary.divergence(rng, state, recipe.ordinary)
            divergence = float(kl.detach())
            loss = loss + recipe.ordinary_weight * kl
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(memory.parameters(), recipe.clip)
        self.optimizer.step()
        memory.reset()
        self.step += 1
        stage = self.curriculum.stage
        self.curriculum.update(recall.accuracy)
        results: dict[str, Any] = {}
        if self.step % recipe.eval_every == 0:
            results = self.evaluate()
        spent = time.monotonic() - began
        self.seconds += spent
        return StepReport(
            self.step,
            float(loss.detach()),
            float(recall.value.detach()),
            recall.accuracy,
            divergence,
            stage,
            rate,
            spent,
            results,
        )

    def _write(self, episodes: Sequence[Episode]) -> MemoryState:
        """The states the histories leave; histories of like length go together, so that little is padding."""
        size = self.recipe.bucket
        states = [
            self.passes.write(write_batch(self.passes.form, episodes[at : at + size]), self.recipe.local_gradient)
            for at in range(0, len(episodes), size)
        ]
        return MemoryState.stack(states)

    def _recall_loss(self, rng: random.Random, episodes: Sequence[Episode], state: MemoryState) -> RecallLoss:
        asked = [(i, q) for i, e in enumerate(episodes) for q in e.questions]
        if len(asked) > self.recipe.questions:
            asked = rng.sample(asked, self.recipe.questions)
        asked.sort(key=lambda a: sum(len(q.text) + len(q.answer) for q in (a[1], *a[1].earlier)))
        size = 2 * self.recipe.bucket
        reads = [read_batch(self.passes.form, asked[at : at + size]) for at in range(0, len(asked), size)]
        return recall_loss([self.passes.read(batch, state) for batch in reads], reads)

    def _episodes(self, rng: random.Random) -> list[Episode]:
        episodes = []
        for _ in range(self.recipe.batch):
            if rng.random() < self.own_share:
                episodes.append(rng.choice(self.own))
            else:
                episodes.append(self.people.episode(rng, self.curriculum.difficulty, "train"))
        return sorted(episodes, key=lambda e: sum(len(t.user) + len(t.reply) for t in e.history))

    # Held-out recall

    def evaluate(self) -> dict[str, Any]:
        """Free-running recall of held-out values and phrasings, by number of facts."""
        results = heldout_recall(self.passes, self.recipe.eval_questions)
        self.passes.memory.reset()
        return {name: row["memory"] for name, row in results.items()}
