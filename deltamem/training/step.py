"""One step's loss and its gradient: the global batch, this process's share of it, and the parts that share is cut into.

Every process draws the same global batch from the same random numbers. Losses are sums divided by counts over the
whole batch, so that the sum of the processes' gradients is the gradient that one process would have found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from deltamem.episodes.batches import ReadBatch, read_batch, write_batch
from deltamem.episodes.episode import Episode, Question, in_window
from deltamem.episodes.passes import Passes
from deltamem.evaluation.histories import windows
from deltamem.evaluation.ordinary import divergence
from deltamem.state import MemoryState
from deltamem.training.addresses import Addresses
from deltamem.training.objective import SILENT, answer_losses, contrast, sparsity, towards
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team

Asked = tuple[int, Question]


class TrainingStep:
    """Works out gradients.

    Args:
        passes: backbone and memory.
        recipe: weights of the losses, and sizes.
        ordinary: what is to be left alone; None for nothing.
        team: the processes that train together.
    """

    def __init__(self, passes: Passes, recipe: Recipe, ordinary: OrdinaryTalk | None, team: Team) -> None:
        self._passes, self._recipe, self._ordinary, self._team = passes, recipe, ordinary, team

    def backward(self, rng: random.Random, episodes: Sequence[Episode]) -> dict[str, float]:
        """Add the gradient of the whole batch's loss to the parameters, the same in every process.

        Returns:
            The parts of the loss, each a mean over the whole batch, their weighted sum as ``loss``, and ``accuracy``
            on values; with the addressing loss also ``found`` and ``overlap``.
        """
        recipe, team = self._recipe, self._team
        asked = _spread(rng, episodes, recipe.questions)
        chosen = self._ordinary.choose(rng, recipe.ordinary) if self._ordinary is not None else []
        prompts = [(i % len(episodes), number) for i, number in enumerate(chosen)]
        mine = team.share(range(len(episodes)))
        size = -(-len(mine) // recipe.accumulate)
        parts = [mine[at : at + size] for at in range(0, len(mine), size)]
        work = [
            (
                part,
                _buckets([(part.index(i), q) for i, q in asked if i in part], 2 * recipe.bucket),
                [(part.index(i), number) for i, number in prompts if i in part],
            )
            for part in parts
        ]
        batches = [[read_batch(self._passes.form, bucket) for bucket in buckets] for _, buckets, _ in work]
        counts = self._counts([b for part in batches for b in part])
        sums: dict[str, float] = {}
        watched = recipe.addressing_weight or recipe.sparsity_weight or recipe.silence_weight
        addresses = Addresses(self._passes.memory) if watched else None
        for (part, buckets, mine_ordinary), reads in zip(work, batches, strict=True):
            told = [episodes[i] for i in part]
            state = self._write(told, addresses)
            loss = self._answers(told, state, buckets, reads, counts, sums, addresses)
            if mine_ordinary and self._ordinary is not None:
                batch = self._ordinary.batch(mine_ordinary)
                with addresses.idle(batch) if addresses is not None else nullcontext():
                    logits = self._passes.read(batch, state)
                total = self._ordinary.distance(mine_ordinary, logits)
                loss = loss + recipe.ordinary_weight * _part(sums, "ordinary", total, self._ordinary_tokens(prompts))
            if loss.requires_grad:
                loss.backward()
        if addresses is not None:
            self._addressing(addresses, sums)
        team.sum_gradients(list(self._passes.memory.parameters()))
        return self._report(sums, counts)

    def _report(self, sums: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
        names = sorted({name for shared in self._team.gather(list(sums)) for name in shared})
        values = torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64)
        found = dict(zip(names, self._team.sum(values.to(self._passes.device, torch.float32)).tolist(), strict=True))
        right = found.pop("right", 0.0)
        weights = {
            "value": 1.0,
            "start": self._recipe.start_weight,
            "rest": self._recipe.rest_weight,
            "ordinary": self._recipe.ordinary_weight,
            "distill": self._recipe.distill_weight,
            "contrast": self._recipe.contrast_weight,
            "addressing": self._recipe.addressing_weight,
            "sparsity": self._recipe.sparsity_weight,
            "silence": self._recipe.silence_weight,
        }
        found["loss"] = sum(weights.get(name, 0.0) * value for name, value in found.items())
        found["accuracy"] = right / counts["value"] if counts["value"] else 0.0
        return found

    def _counts(self, batches: Sequence[ReadBatch]) -> dict[str, float]:
        """Tokens of values, first tokens and the rest in the whole batch."""
        kinds = torch.zeros(3, device=self._passes.device)
        for batch in batches:
            targets, values, starts = batch.expected()
            of_each = [int(values.sum()), int(starts.sum()), len(targets) - int((values | starts).sum())]
            kinds += torch.tensor(of_each, device=kinds.device)
        return dict(zip(("value", "start", "rest"), self._team.sum(kinds).tolist(), strict=True))

    def _ordinary_tokens(self, prompts: Sequence[tuple[int, int]]) -> float:
        assert self._ordinary is not None
        return float(len(self._ordinary.batch(prompts).expected()[0])) if prompts else 1.0

    # Writing

    def _write(self, episodes: Sequence[Episode], addresses: Addresses | None) -> MemoryState:
        """The states the histories leave; histories of like length go together, so that little is padding."""
        size = self._recipe.bucket
        return MemoryState.stack(
            [self._write_bucket(episodes[at : at + size], addresses) for at in range(0, len(episodes), size)]
        )

    def _write_bucket(self, episodes: Sequence[Episode], addresses: Addresses | None) -> MemoryState:
        recipe, form = self._recipe, self._passes.form
        cut = [[w for s in e.sessions for w in windows(form, s, recipe.window)] for e in episodes]
        count = max(1, *map(len, cut))
        state: MemoryState | None = None
        for number in range(count):
            if state is not None and number == count - recipe.truncate:
                state = state.clone()  # the gradient goes no further back
            # Who has nothing more to say is padding throughout, and keeps the state as it is.
            part = [
                replace(e, history=tuple(own[number]) if number < len(own) else (), breaks=())
                for e, own in zip(episodes, cut, strict=True)
            ]
            batch = write_batch(form, part)
            with addresses.told(batch, part) if addresses is not None else nullcontext():
                state = self._passes.write(batch, recipe.local_gradient, state)
        assert state is not None
        return state

    # Reading

    def _answers(
        self,
        episodes: Sequence[Episode],
        state: MemoryState,
        buckets: Sequence[Sequence[Asked]],
        reads: Sequence[ReadBatch],
        counts: dict[str, float],
        sums: dict[str, float],
        addresses: Addresses | None,
    ) -> Tensor:
        recipe = self._recipe
        loss = state.tensor.new_zeros(())
        for bucket, batch in zip(buckets, reads, strict=True):
            with addresses.asking(batch, bucket) if addresses is not None else nullcontext():
                logits = self._passes.read(batch, state)
            answers = answer_losses(logits, batch)
            loss = loss + _part(sums, "value", answers.value, counts["value"])
            loss = loss + recipe.start_weight * _part(sums, "start", answers.start, counts["start"])
            loss = loss + recipe.rest_weight * _part(sums, "rest", answers.rest, counts["rest"])
            sums["right"] = sums.get("right", 0.0) + answers.right
            if recipe.distill_weight:
                told = [_in_context(episodes[i], q) for i, q in bucket]
                with torch.no_grad():
                    teacher = self._passes.read(read_batch(self._passes.form, [(0, q) for q in told]), None)
                total = divergence(logits, teacher)
                loss = loss + recipe.distill_weight * _part(sums, "distill", total, sum(counts.values()))
            if recipe.contrast_weight and len(episodes) > 1:
                loss = loss + recipe.contrast_weight * self._contrast(batch, state, answers.chosen, counts, sums)
        return loss

    def _contrast(
        self, batch: ReadBatch, state: MemoryState, own: Tensor, counts: dict[str, float], sums: dict[str, float]
    ) -> Tensor:
        """Against the next history's state, and against an empty one, which is the frozen backbone."""
        other = replace(batch, rows=(batch.rows + 1) % state.batch_size)
        loss = contrast(own, answer_losses(self._passes.read(other, state), batch).chosen)
        with torch.no_grad():
            empty = answer_losses(self._passes.read(batch, None), batch).chosen
        return _part(sums, "contrast", (loss + contrast(own, empty)) / 2, counts["value"])

    def _addressing(self, addresses: Addresses, sums: dict[str, float]) -> None:
        """The losses on keys and gates take the hidden states of all processes; each does the same work on them."""
        recipe, share = self._recipe, 1 / self._team.size
        addresses.merge(self._team)
        loss = torch.zeros((), device=self._passes.device)
        found = addresses.loss() if recipe.addressing_weight else None
        if found is not None:
            total = found.total(recipe.spread) * share
            loss = loss + recipe.addressing_weight * total
            sums["addressing"] = float(total.detach())
            sums["found"] = float(found.found.mean()) * share
            sums["overlap"] = float(found.overlap.detach()) * share
        if recipe.sparsity_weight:
            distance = sparsity(addresses.gates(), recipe.gate_target) * share
            loss = loss + recipe.sparsity_weight * distance
            sums["sparsity"] = float(distance.detach())
        reading = addresses.reading() if recipe.silence_weight else None
        if reading is not None:
            opened = towards(reading, SILENT) * share
            loss = loss + recipe.silence_weight * opened
            sums["silence"] = float(opened.detach())
        if loss.requires_grad:
            loss.backward()


def _part(sums: dict[str, float], name: str, total: Tensor, count: float) -> Tensor:
    mean = total / max(1.0, count)
    sums[name] = sums.get(name, 0.0) + float(mean.detach())
    return mean


def _spread(rng: random.Random, episodes: Sequence[Episode], most: int) -> list[Asked]:
    asked = [(i, q) for i, e in enumerate(episodes) for q in e.questions]
    return rng.sample(asked, most) if len(asked) > most else asked


def _buckets(asked: Sequence[Asked], size: int) -> list[list[Asked]]:
    """Questions of like length together."""
    order = sorted(asked, key=lambda a: sum(len(q.text) + len(q.answer) for q in (a[1], *a[1].earlier)))
    return [order[at : at + size] for at in range(0, len(order), size)]


def _in_context(episode: Episode, question: Question) -> Question:
    """The question with the whole history before it in the window; its answer is all that counts there."""
    told = in_window(episode.history)
    return replace(question, earlier=(*told, *question.earlier))
