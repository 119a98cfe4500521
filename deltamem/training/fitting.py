"""Fitting keys, queries and gates on frozen hidden states, before a single step of training through the backbone.

From random ones the gradient of recall is close to nothing. The frozen hidden states are worked out once, so this
takes a minute or two on a CPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.memory import DeltaMemory
from deltamem.training.addressing import Places, Weights, addressing_loss, classes
from deltamem.training.recorder import Recorder, asking_places, told_names
from deltamem.training.warm_start import delta_layers, fit_values

_COMPARED = 256
"""Told tokens compared in one step."""
_RATE = 3e-3
_BLAND = 160
"""Tokens of each other sort kept per batch of episodes."""

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Fit:
    """How well keys can be told apart, a number per layer.

    Attributes:
        found: how often the asking token's query is nearest to the right key among `_COMPARED`.
        overlap: mean squared cosine between the keys of different facts.
        explained: share of the variance of a token's code that W_v finds in hidden states.
    """

    found: list[float]
    overlap: list[float]
    explained: list[float]


def fit_memory(
    memory: DeltaMemory,
    passes: Passes,
    people: SyntheticPeople,
    seed: int = 0,
    episodes: int = 1600,
    steps: int = 600,
    spread: float = 2.0,
    report: Report | None = None,
) -> Fit:
    """Fit W_q, W_k, the write gate, W_v and D_o; for what is not named here see `fit_places`.

    Args:
        passes: runs the backbone.
        people: what is told and asked.
        episodes: how many are looked at.
    """
    places, ids = collect(memory, passes, people, random.Random(seed), episodes, report)
    return fit_places(memory, places, ids, seed, steps, spread, report)


def fit_places(
    memory: DeltaMemory,
    places: Places,
    ids: Tensor,
    seed: int = 0,
    steps: int = 600,
    spread: float = 2.0,
    report: Report | None = None,
) -> Fit:
    """Fit W_q, W_k, the write gate, W_v and D_o on hidden states that are there already.

    Args:
        memory: whose adapter is changed.
        places: the hidden states.
        ids: token ids of `places.told` and then of `places.other_written`.
        seed: of everything random.
        steps: of Adam.
        spread: weight of the overlap of keys of different facts.
        report: called with what is being done and the share done.
    """
    explained = fit_values(memory, torch.cat([places.told, places.other_written], dim=1), ids)
    layers = delta_layers(memory)
    weights = stacked_weights(memory, fresh=True)
    parameters = [weights.query, weights.key, weights.gate, weights.bias]
    optimizer = torch.optim.Adam(parameters, lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    found = overlap = torch.zeros(len(layers))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)

        def some(hidden: Tensor, count: int) -> Tensor:
            return torch.randint(hidden.shape[1], (count,), generator=generator)

        # As often as they come: giving every class the same weight measured worse on people not seen in the fit,
        # since most classes are later tokens of a value, and have one member.
        told, asking = some(places.told, _COMPARED), some(places.asking, _COMPARED)
        written, read = some(places.other_written, _COMPARED), some(places.other_read, _COMPARED // 2)
        loss = addressing_loss(
            weights,
            Places(
                places.told[:, told],
                places.told_class[told],
                places.asking[:, asking],
                places.asking_class[asking],
                places.other_written[:, written],
                places.other_read[:, read],
            ),
        )
        optimizer.zero_grad()
        loss.total(spread).backward()
        optimizer.step()
        found = loss.found if step == 0 else 0.95 * found + 0.05 * loss.found
        overlap = loss.overlaps if step == 0 else 0.95 * overlap + 0.05 * loss.overlaps
        if report is not None and step % 20 == 0:
            report("fitting keys and gates", step / steps)
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.memory_q_proj.copy_(weights.query[i])
            layer.memory_k_proj.copy_(weights.key[i])
            layer.beta_proj.copy_(weights.gate[i])
            layer.beta_bias.copy_(weights.bias[i])
    return Fit([float(x) for x in found], [float(x) for x in overlap], explained)


def stacked_weights(memory: DeltaMemory, fresh: bool = False) -> Weights:
    """The adapter's addressing as it is; `fresh`: copies on the CPU to be fitted apart from it."""

    def stacked(name: str) -> Tensor:
        weight = torch.stack([getattr(layer, name).float() for layer in delta_layers(memory)])
        return weight.detach().cpu().requires_grad_() if fresh else weight

    names = ("memory_q_proj", "memory_k_proj", "beta_proj", "beta_bias")
    query, key, gate, bias = map(stacked, names)
    return Weights(query, key, gate, bias, memory.config.num_state_heads)


def collect(
    memory: DeltaMemory,
    passes: Passes,
    people: SyntheticPeople,
    rng: random.Random,
    episodes: int,
    report: Report | None = None,
) -> tuple[Places, Tensor]:
    """Run told facts and their questions through the frozen backbone, and keep what enters the adapted layers.

    Returns:
        The hidden states, and the token ids of `told` and then of `other_written`.
    """
    numbers: dict[Hashable, int] = {}
    told: list[Tensor] = []
    asking: list[Tensor] = []
    written: list[Tensor] = []
    read: list[Tensor] = []
    told_ids: list[Tensor] = []
    written_ids: list[Tensor] = []
    told_class: list[Tensor] = []
    asking_class: list[Tensor] = []
    difficulty = Difficulty(facts=3, small_talk=1, long_values=0.3, others=0.1)
    size = 16
    for start in range(0, episodes, size):
        batch = [people.episode(rng, difficulty, "train") for _ in range(size)]
        history = write_batch(passes.form, batch)
        places = history.values > 0
        bland = _some(history.written & ~places)
        with torch.no_grad(), memory.disabled(), Recorder(memory, places) as a, Recorder(memory, bland) as b:
            passes.run(history)
        told.append(a.stacked().cpu())
        written.append(b.stacked().cpu())
        told_ids.append(history.ids[places])
        written_ids.append(history.ids[bland])
        told_class.append(classes(told_names(history, batch), numbers))

        asked = [(i, q) for i, e in enumerate(batch) for q in e.questions]
        questions = read_batch(passes.form, asked)
        places, names = asking_places(questions, asked)
        bland = _some(questions.valid & ~places)
        with torch.no_grad(), Recorder(memory, places) as a, Recorder(memory, bland) as b:
            passes.read(questions, None)
        asking.append(a.stacked().cpu())
        read.append(b.stacked().cpu())
        asking_class.append(classes(names, numbers))
        if report is not None:
            report("reading hidden states", start / episodes)
    memory.reset()
    found = Places(
        torch.cat(told, 1),
        torch.cat(told_class),
        torch.cat(asking, 1),
        torch.cat(asking_class),
        torch.cat(written, 1),
        torch.cat(read, 1),
    )
    return found, torch.cat([*told_ids, *written_ids])


def _some(places: Tensor) -> Tensor:
    """At most `_BLAND` of the places, by chance."""
    rows = places.nonzero()
    rows = rows[torch.randperm(len(rows))[:_BLAND]]
    kept = torch.zeros_like(places)
    kept[rows[:, 0], rows[:, 1]] = True
    return kept
