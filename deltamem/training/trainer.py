"""The training loop. It yields what happened at each step and draws nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deltamem.adapter import save_adapter
from deltamem.episodes.episode import Episode
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.memory import DeltaMemory
from deltamem.training.cached.bank import build_bank
from deltamem.training.cached.step import CachedStep
from deltamem.training.checkpoints import load_checkpoint, save_checkpoint
from deltamem.training.curriculum import WaitingCurriculum
from deltamem.training.data import Made, Mix
from deltamem.training.heldout import heldout_recall
from deltamem.training.metrics import Metrics
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.places.alone import fit_alone, fit_at_the_end
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.step import PlacesStep
from deltamem.training.places.whole import whole_bank
from deltamem.training.recipe import Recipe
from deltamem.training.step import TrainingStep
from deltamem.training.team import Team

Fit = Callable[[DeltaMemory, Bank, int, Report | None], None]


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        step: its number, from 1.
        loss: the weighted sum of the parts.
        accuracy: share of value tokens that came out right.
        stage: of the curriculum.
        rate: learning rate.
        seconds: that it took.
        parts: means over the batch (see `TrainingStep.backward`).
        recall: on steps with an evaluation, by number of facts.
    """

    step: int
    loss: float
    accuracy: float
    stage: int
    rate: float
    seconds: float
    parts: dict[str, float]
    recall: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains the adapter of an attached memory.

    Args:
        passes: backbone, memory and chat format.
        recipe: hyperparameters.
        directory: where the run lives: checkpoint, `metrics.jsonl`, and the adapter at the end.
        people: the generator of episodes.
        mix: where episodes come from; None is the generator alone.
        team: the processes that train together; None for this one alone.
        curriculum: None is the one that waits.
        tensorboard: log for TensorBoard as well.
        fit: called with memory, bank, seed and `preparing` before the first of the steps on places.
        preparing: called with what is being done and the share done, while a bank is built.
        workers: processes that make episodes for a bank on places, and draw what steps on it look at; 0 for none
            beside this one.
        bank: what steps on places draw from; None builds it.
    """

    def __init__(
        self,
        passes: Passes,
        recipe: Recipe,
        directory: Path,
        people: SyntheticPeople,
        mix: Mix | None = None,
        team: Team | None = None,
        curriculum: WaitingCurriculum | None = None,
        tensorboard: bool = False,
        fit: Fit | None = None,
        preparing: Report | None = None,
        workers: int = 0,
        bank: Bank | None = None,
    ) -> None:
        self._preparing, self._workers, self._bank = preparing, workers, bank
        self.passes, self.recipe, self.directory, self.people = passes, recipe, directory, people
        self.mix = mix or Mix([Made(people)], [1.0], ["synthetic"])
        self.team = team or Team()
        self.curriculum = curriculum or WaitingCurriculum(mark=recipe.mark)
        self.step = 0
        self.seconds = 0.0
        self.best = 0.0
        self.since_best = 0
        self._tensorboard, self._fit = tensorboard, fit
        self._stopping = self.stopped = self.finished = False
        self._places: Bank | None = None
        memory = passes.memory
        memory.adapter.requires_grad_(True)
        self.parameters = dict(memory.adapter.named_parameters())
        groups: dict[float, list[torch.Tensor]] = {}
        for name, parameter in self.parameters.items():
            scale = recipe.scale(name.rpartition(".")[2])
            groups.setdefault(scale, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": params, "scale": scale} for scale, params in groups.items()],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=0.0,
        )

    # Progress on disk

    def save(self) -> None:
        """Write a checkpoint and the adapter as it is; the first process does, for all."""
        if self.team.rank == 0:
            progress = {
                "step": self.step,
                "seconds": self.seconds,
                "stage": self.curriculum.stage,
                "stage_steps": self.curriculum.steps,
                "stage_accuracy": self.curriculum.accuracy,
                "best": self.best,
                "since_best": self.since_best,
                "finished": self.finished,
                "recipe": self.recipe.to_dict(),
            }
            save_checkpoint(self.directory, dict(self.parameters), self.optimizer, progress)
            save_adapter(self.directory, self.passes.memory.config, self.passes.memory.adapter_tensors())
        self.team.wait()

    def resume(self) -> None:
        """Go on where the run's last checkpoint was."""
        progress = load_checkpoint(self.directory, dict(self.parameters), self.optimizer)
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.best, self.since_best = progress.get("best", 0.0), progress.get("since_best", 0)
        self.finished = progress.get("finished", False)
        self.curriculum.stage = min(progress["stage"], len(self.curriculum.stages) - 1)
        self.curriculum.steps = progress["stage_steps"]
        self.curriculum.accuracy = progress["stage_accuracy"]

    # The loop

    def stop(self) -> None:
        """End `run` after the step it is at, with a checkpoint to go on from. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, saving on the way; the adapter is in `directory` afterwards."""
        recipe = self.recipe
        self.directory.mkdir(parents=True, exist_ok=True)
        metrics = Metrics(self.directory, self.step, self._tensorboard) if self.team.rank == 0 else None
        ordinary = None
        if recipe.ordinary and not recipe.only_erasing:
            ordinary = OrdinaryTalk(
                self.passes, self.people, recipe.reply_tokens, recipe.seed, self.directory, self._preparing
            )
        step = TrainingStep(self.passes, recipe, ordinary, self.team)
        to_finish = self._last_layer and recipe.ends_on_places and not self.finished
        cached = self._cached_step(ordinary) if self.step < recipe.cached_steps or to_finish else None
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(group["scale"] > 0)
        while not recipe.over(self.step, self.seconds) and not (recipe.patience and self.since_best >= recipe.patience):
            if self.step >= recipe.cached_steps:
                cached = None  # a bank takes gigabytes
            report = self._one_step(step, cached)
            if metrics is not None:
                metrics.add(vars(report))
            if self.step % recipe.save_every == 0 or recipe.over(self.step, self.seconds):
                self.save()
            yield report
            if any(self.team.gather(self._stopping)):  # a signal need not reach all processes at the same step
                self.stopped = True
                break
        if to_finish and not self.stopped and self._places is not None:
            fit_at_the_end(self.passes.memory, self._places, recipe, self._preparing)
            self.finished = True
        if self.step % recipe.save_every or self.finished:
            self.save()

    @property
    def _last_layer(self) -> bool:
        return self.passes.memory.config.corrections == "last"

    def _cached_step(self, ordinary: OrdinaryTalk | None) -> CachedStep | PlacesStep:
        recipe = self.recipe
        if not self._last_layer:
            asked = ordinary.questions if ordinary is not None else []
            bank = build_bank(self.passes, self.people, asked, recipe.bank, recipe.seed, self._preparing)
            return CachedStep(self.passes, recipe, bank, ordinary, self.team)
        places = self._bank
        if places is None:
            places = whole_bank(
                self.passes, self.people, ordinary, recipe, self.directory, self._preparing, self._workers
            )
        if not self.step:
            if self._fit is not None:
                self._fit(self.passes.memory, places, recipe.seed, self._preparing)
            fit_alone(self.passes, places, recipe, self._preparing)
        step = PlacesStep(self.passes, recipe, places, self.team)
        self._places = step.bank if recipe.ends_on_places else None
        if self.step < recipe.cached_steps:
            step.draw_ahead(self.step, self._workers)
        return step

    def _one_step(self, step: TrainingStep, cached: CachedStep | PlacesStep | None) -> StepReport:
        recipe = self.recipe
        began = time.monotonic()
        rng = recipe.rng(self.step)
        rate = recipe.rate(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad()
        parts = cached.backward(self.step) if cached is not None else step.backward(rng, self._episodes(rng))
        torch.nn.utils.clip_grad_norm_(self.passes.memory.parameters(), recipe.clip)
        self.optimizer.step()
        self.passes.memory.reset()
        self.step += 1
        stage = self.curriculum.stage
        accuracy = parts.pop("accuracy")
        if cached is None:
            self.curriculum.update(accuracy)
        results = self.evaluate() if self.step % recipe.eval_every == 0 else {}
        spent = max(self.team.gather(time.monotonic() - began))  # the same everywhere: the rate may go by it
        self.seconds += spent
        return StepReport(self.step, parts.pop("loss"), accuracy, stage, rate, spent, parts, results)

    def _episodes(self, rng: random.Random) -> list[Episode]:
        episodes = [self.mix.episode(rng, self.curriculum.difficulty) for _ in range(self.recipe.batch)]
        return sorted(episodes, key=lambda e: e.length)

    # Held-out recall

    def evaluate(self) -> dict[str, Any]:
        """Free-running recall of held-out values and phrasings, by number of facts; remembers the best mean."""
        results = heldout_recall(self.passes, self.recipe.eval_questions)
        self.passes.memory.reset()
        found = {name: row["memory"] for name, row in results.items()}
        mean = sum(row["named"] for row in found.values()) / len(found)
        self.best, self.since_best = (mean, 0) if mean > self.best else (self.best, self.since_best + 1)
        return found
