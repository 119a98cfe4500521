"""One step on the bank: write what was drawn, run the answers through the backbone, and work out gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltamem.episodes.passes import Passes
from deltamem.episodes.prefixes import Prefix, answer_batch, read_answers
from deltamem.state import MemoryState
from deltamem.training.cached.bank import Bank
from deltamem.training.cached.draw import Drawn, draw
from deltamem.training.objective import SILENT, answer_losses, towards
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team
from deltamem.training.warm_start import delta_layers

_OPEN, _SHUT, _SHUT_TALK = 0.9, 1e-3, 5e-4
"""Write gates wanted on the tokens of values, on others around them, and in small talk."""
_GATES = (1.2, 4.0, 24.0)
"""Weights of the three."""
_SILENT_WEIGHT = 3.0
"""Of read gates shut on what is told and on a question's words. Left open there, four facts told in one window were
recalled five times less often: what was read bent the hidden states that the next fact was written from."""
_COMPARED = 128
_ASKING = 300
_SHORT = 10

Question = tuple[int, Prefix, tuple[int, ...], tuple[int, ...]]


class CachedStep:
    """Works out gradients on the bank. It has the face of `TrainingStep`, but draws for itself.

    Args:
        passes: backbone and memory; the memory writes token by token.
        recipe: weights of the losses, and sizes.
        bank: what is drawn from.
        ordinary: what is to be left alone.
        team: the processes that train together.
    """

    def __init__(self, passes: Passes, recipe: Recipe, bank: Bank, ordinary: OrdinaryTalk | None, team: Team) -> None:
        self._passes, self._recipe, self._bank = passes, recipe, bank
        self._ordinary, self._team = ordinary, team

    def backward(self, step: int) -> dict[str, float]:
        """Add the gradient of the whole batch's loss to the parameters, the same in every process.

        Args:
            step: its number, from 0, which decides what is drawn.

        Returns:
            As `TrainingStep.backward` does; ``overlap`` is that of keys of different facts, ``gates`` the
            cross-entropy of the write gates, and of the read gates where nothing is to be read.
        """
        recipe, team, rng = self._recipe, self._team, self._recipe.rng(step)
        counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= recipe.cached_facts]
        facts = rng.choice(counts)
        drawn = draw(
            rng,
            self._bank,
            max(4, recipe.cached_questions // facts),
            facts,
            recipe.cached_talk,
            recipe.cached_questions,
        )
        chosen = self._ordinary.choose(rng, recipe.ordinary) if self._ordinary is not None else []
        prompts = [(rng.randrange(len(drawn.valid)), number) for number in chosen]
        # Writing is the cheap part: every process does all of it, and asks its share of the questions.
        silent = torch.tensor(rng.choices(range(self._bank.asking.shape[1]), k=_ASKING))
        state, gates, overlap = self._write(drawn, self._bank.asking[:, silent])
        sums: dict[str, float] = {}
        parts = recipe.addressing_weight * (gates + recipe.spread * overlap)
        loss = self._answers(team.share(drawn.asked), drawn.asked, state, sums) + parts / team.size
        loss = loss + self._left_alone(team.share(prompts), prompts, state, sums)
        loss.backward()
        team.sum_gradients(list(self._passes.memory.parameters()))
        return self._report(sums, float(gates.detach()), float(overlap.detach()))

    # Writing

    def _write(self, drawn: Drawn, asking: Tensor) -> tuple[MemoryState, Tensor, Tensor]:
        """The states, the loss of the gates, and the overlap of keys of different facts."""
        layers, device = delta_layers(self._passes.memory), self._passes.device
        batch, config = len(drawn.valid), self._passes.memory.config
        valid, values = drawn.valid.to(device), drawn.values.to(device)
        kinds = (values, valid & ~values & ~drawn.talk.to(device), drawn.talk.to(device))
        places = drawn.values.nonzero()
        if len(places) > _COMPARED:
            places = places[:: -(-len(places) // _COMPARED)]
        rows, columns = places.unbind(1)
        about = drawn.about[rows, columns]
        apart = (about[:, None] != about[None]).to(device)
        empty = torch.zeros(batch, config.num_state_heads, config.rank, config.rank, device=device)
        states, gates, overlaps = [], [], []
        for layer, hidden, words in zip(layers, drawn.hidden, asking, strict=True):
            x = hidden.to(device).float()
            told = layer.told(x)
            states.append(layer.write(told, empty, valid))
            gates.append(_gate_loss(layer.write_gates(x), kinds))
            if config.read_gate:
                for reading in (x[valid], words.to(device).float()):
                    gates[-1] = gates[-1] + _SILENT_WEIGHT * towards(layer.read_gates(reading[None]), SILENT)
            keys = told.k[rows.to(device), columns.to(device)]  # (n, H, r)
            crossing = torch.einsum("ahr,bhr->hab", keys, keys).square()
            overlaps.append(crossing[:, apart].mean() if apart.any() else crossing.sum() * 0)
        return (
            MemoryState(torch.stack(states), self._passes.memory.layer_indices),
            torch.stack(gates).mean(),
            torch.stack(overlaps).mean(),
        )

    # Reading

    def _answers(
        self, mine: Sequence[Question], everyone: Sequence[Question], state: MemoryState, sums: dict[str, float]
    ) -> Tensor:
        recipe = self._recipe
        totals = answer_batch(everyone).expected()
        counts = {
            "value": float(totals[1].sum()),
            "start": float(totals[2].sum()),
            "rest": float((~totals[1] & ~totals[2]).sum()),
        }
        sums["asked"] = counts["value"]
        loss = state.tensor.new_zeros(())
        short = [q for q in mine if len(q[2]) <= _SHORT]
        long = [q for q in mine if len(q[2]) > _SHORT]
        for part in (short, long):
            if not part:
                continue
            batch = answer_batch(part)
            logits = read_answers(self._passes, [prefix for _, prefix, _, _ in part], batch, state)
            found = answer_losses(logits, batch)
            for name, weight in (("value", 1.0), ("start", recipe.start_weight), ("rest", recipe.rest_weight)):
                mean = getattr(found, name) / max(1.0, counts[name])
                sums[name] = sums.get(name, 0.0) + float(mean.detach())
                loss = loss + weight * mean
            sums["right"] = sums.get("right", 0.0) + found.right
        return loss

    def _left_alone(
        self,
        mine: Sequence[tuple[int, int]],
        everyone: Sequence[tuple[int, int]],
        state: MemoryState,
        sums: dict[str, float],
    ) -> Tensor:
        if self._ordinary is None or not mine:
            return state.tensor.new_zeros(())
        prompts = [self._bank.ordinary[number] for _, number in mine]
        asked = [
            (row, prefix, answer, (0,) * len(answer)) for (row, _), (prefix, answer) in zip(mine, prompts, strict=True)
        ]
        logits = read_answers(self._passes, [prefix for prefix, _ in prompts], answer_batch(asked), state)
        tokens = sum(len(self._bank.ordinary[number][1]) for _, number in everyone)
        mean = self._ordinary.distance(mine, logits) / tokens
        sums["ordinary"] = float(mean.detach())
        return self._recipe.ordinary_weight * mean

    def _report(self, sums: dict[str, float], gates: float, overlap: float) -> dict[str, float]:
        recipe = self._recipe
        asked = sums.pop("asked")
        names = ("value", "start", "rest", "ordinary", "right")
        own = torch.tensor([sums.get(name, 0.0) for name in names], device=self._passes.device)
        found = dict(zip(names, self._team.sum(own).tolist(), strict=True))
        right = found.pop("right")
        weights = (1.0, recipe.start_weight, recipe.rest_weight, recipe.ordinary_weight)
        loss = sum(weight * found[name] for weight, name in zip(weights, names, strict=False))
        loss += recipe.addressing_weight * (gates + recipe.spread * overlap)
        return found | {
            "gates": gates,
            "overlap": overlap,
            "loss": loss,
            "accuracy": right / asked if asked else 0.0,
        }


def _gate_loss(gates: Tensor, kinds: Sequence[Tensor]) -> Tensor:
    """Binary cross-entropies of gates (B, T, H, g) against what is wanted of each kind of token."""
    loss = gates.new_zeros(())
    for weight, wanted, here in zip(_GATES, (_OPEN, _SHUT, _SHUT_TALK), kinds, strict=True):
        found = gates[here]
        if found.numel():
            loss = loss + weight * towards(found, wanted)
    return loss
