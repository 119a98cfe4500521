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
from torch import Tensor

from deltamem.adapter import save_adapter
from deltamem.state import MemoryState
from deltamem.training.batches import read_batch, write_batch
from deltamem.training.checkpoints import load_checkpoint, save_checkpoint
from deltamem.training.curriculum import WaitingCurriculum
from deltamem.training.episodes import Episode, Question
from deltamem.training.objective import frozen_divergence, recall_loss
from deltamem.training.passes import Passes
from deltamem.training.recall import heldout_episodes, score_recall
from deltamem.training.recipe import Recipe
from deltamem.training.synthetic import SyntheticPeople


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
        self._ordinary: list[Question] = []
        self._frozen_logits: dict[int, Tensor] = {}

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
        self._ordinary = self.people.learn_replies(self._frozen_replies, random.Random(recipe.seed))
        if not recipe.ordinary:
            self._ordinary = []
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
        asked = [(i, q) for i, e in enumerate(episodes) for q in e.questions]
        if len(asked) > recipe.questions:
            asked = rng.sample(asked, recipe.questions)
        state = self.passes.write(write_batch(self.passes.form, episodes), recipe.local_gradient)
        reads = read_batch(self.passes.form, asked)
        recall = recall_loss(self.passes.read(reads, state), reads)
        loss = recall.value + recipe.rest_weight * recall.rest
        divergence = 0.0
        if self._ordinary:
            kl = self._divergence(rng, state)
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

    def _episodes(self, rng: random.Random) -> list[Episode]:
        episodes = []
        for _ in range(self.recipe.batch):
            if rng.random() < self.own_share:
                episodes.append(rng.choice(self.own))
            else:
                episodes.append(self.people.episode(rng, self.curriculum.difficulty, "train"))
        return episodes

    # Leaving ordinary talk alone

    def _frozen_replies(self, prompts: list[str]) -> list[str]:
        replies: list[str] = []
        for start in range(0, len(prompts), 16):
            replies += self.passes.reply(prompts[start : start + 16], None, self.recipe.reply_tokens)
        return replies

    def _divergence(self, rng: random.Random, state: MemoryState) -> Tensor:
        chosen = rng.sample(range(len(self._ordinary)), min(self.recipe.ordinary, len(self._ordinary)))
        batch = read_batch(self.passes.form, [(rng.randrange(state.batch_size), self._ordinary[i]) for i in chosen])
        frozen = torch.cat([self._frozen_logits_of(i) for i in chosen])
        return frozen_divergence(self.passes.read(batch, state), frozen)

    def _frozen_logits_of(self, i: int) -> Tensor:
        """What the frozen backbone says to an ordinary prompt, worked out once."""
        if i not in self._frozen_logits:
            with torch.no_grad():
                alone = read_batch(self.passes.form, [(0, self._ordinary[i])])
                self._frozen_logits[i] = self.passes.read(alone, None).to(torch.bfloat16)
        return self._frozen_logits[i]

    # Held-out recall

    def evaluate(self) -> dict[str, Any]:
        """Free-running recall of held-out values, by number of facts."""
        results = {}
        for facts in (1, 3):
            count = max(1, self.recipe.eval_episodes // facts)
            score, _ = score_recall(self.passes, heldout_episodes(self.people, facts, count))
            results[str(facts)] = score.to_dict()
        self.passes.memory.reset()
        return results
