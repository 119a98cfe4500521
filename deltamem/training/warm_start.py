"""A starting point from which recall is a short way off.

From random weights the gradient of recall is close to nothing: a value must be written, under a key that its
question finds, through layers that pass it on, before any of these pays. Each part can be had without the others:

* **values** are carried by copying: W_v of layer l takes eight directions of a token's identity (right singular
  vectors 8l ... 8l+7 of the centred embedding) and D_o gives them back (DESIGN, section 7);
* **keys and queries** are fitted on hidden states of the frozen backbone, layer by layer, so that the token before
  an answer finds the token that was told, among all relations (a contrastive loss), and other tokens find nothing;
* **gates** are fitted there too: open on the tokens of a fact, shut elsewhere.

Fitting costs about a minute on a CPU because the frozen hidden states are worked out once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import Difficulty, SyntheticPeople
from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory


@dataclass(frozen=True)
class _Features:
    """Frozen hidden states by layer, (L, N, hidden), with the class (relation and token number) they stand for."""

    told: Tensor
    told_class: Tensor
    asking: Tensor
    asking_class: Tensor
    other_written: Tensor
    other_read: Tensor


def copy_directions(memory: DeltaMemory, gain: float = 0.3) -> None:
    """Set W_v and D_o so that a layer writes and gives back its own directions of a token's identity."""
    model: Any = memory.model
    embedding = model.get_input_embeddings().weight.detach().float()
    _, _, directions = torch.linalg.svd(embedding - embedding.mean(0), full_matrices=False)
    for i, layer in enumerate(_layers(memory)):
        width = layer.memory_v_proj.shape[0]
        rows = torch.arange(i * width, (i + 1) * width) % len(directions)
        with torch.no_grad():
            layer.memory_v_proj.copy_(directions[rows])
            if layer.corrects("o"):
                layer.delta_o_proj.copy_(directions[rows].T * gain)


def fit_addressing(
    memory: DeltaMemory,
    passes: Passes,
    people: SyntheticPeople,
    seed: int = 0,
    episodes: int = 480,
    steps: int = 600,
    open_gate: float = 0.9,
    shut_gate: float = 0.002,
    report: Callable[[str, float], None] | None = None,
) -> list[float]:
    """Fit W_q, W_k and the write gate on frozen hidden states.

    Args:
        report: called with what is being done and the share done.

    Returns:
        Per layer, how often the asking token's query is nearest to the right key, among all relations at once.
    """
    features = _collect(memory, passes, people, random.Random(seed), episodes, report)
    layers = _layers(memory)
    heads, rank = memory.config.num_state_heads, memory.config.rank
    w_q, w_k, w_b = (
        torch.stack([getattr(y, n).detach().float() for y in layers])
        for n in ("memory_q_proj", "memory_k_proj", "beta_proj")
    )
    bias = torch.stack([y.beta_bias.detach().float() for y in layers])
    params = [p.requires_grad_() for p in (w_q, w_k, w_b, bias)]
    optimizer = torch.optim.Adam(params, lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    classes = torch.unique(features.told_class)
    accuracy = torch.zeros(len(layers))
    targets = torch.logit(torch.tensor([open_gate, shut_gate])).sigmoid()

    def unit(weight: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(x @ weight.transpose(1, 2)).unflatten(-1, (heads, rank))
        return F.normalize(out, dim=-1)  # (L, N, H, r)

    for step in range(steps):
        told = _one_of_each(features.told_class, classes, generator)
        asking = _one_of_each(features.asking_class, classes, generator)
        other = torch.randint(features.other_read.shape[1], (128,), generator=generator)
        keys = unit(w_k, features.told[:, told])  # (L, C, H, r)
        queries = unit(w_q, features.asking[:, asking])
        idle = unit(w_q, features.other_read[:, other])
        match = torch.einsum("lqhr,lkhr->lqk", queries, keys) / heads
        found = F.cross_entropy(
            (match * 10).flatten(0, 1), torch.arange(len(classes)).repeat(len(layers)), reduction="mean"
        )
        quiet = torch.einsum("lqhr,lkhr->lqk", idle, keys).div(heads).pow(2).mean()
        bland = torch.randint(features.other_written.shape[1], (256,), generator=generator)
        opened = features.told[:, told] @ w_b.transpose(1, 2) + bias[:, None]
        shut = features.other_written[:, bland] @ w_b.transpose(1, 2) + bias[:, None]
        gate = F.binary_cross_entropy_with_logits(
            opened, targets[0].expand_as(opened)
        ) + 4 * F.binary_cross_entropy_with_logits(shut, targets[1].expand_as(shut))
        loss = found + 2 * quiet + gate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits = (match.argmax(-1) == torch.arange(len(classes))).float().mean(-1)
        accuracy = hits if step == 0 else 0.95 * accuracy + 0.05 * hits
        if report is not None and step % 20 == 0:
            report("fitting keys and gates", step / steps)
    with torch.no_grad():
        for i, layer in enumerate(layers):
            # Values of unit spread, whatever a layer's norm does to its input.
            values = features.told[i] @ layer.memory_v_proj.cpu().float().T
            layer.memory_v_proj.div_(values.std(0).clamp_min(1e-6)[:, None].to(layer.memory_v_proj))
            layer.memory_q_proj.copy_(w_q[i])
            layer.memory_k_proj.copy_(w_k[i])
            layer.beta_proj.copy_(w_b[i])
            layer.beta_bias.copy_(bias[i])
    return [float(a) for a in accuracy.detach()]


def _layers(memory: DeltaMemory) -> list[DeltaLayer]:
    return [layer for layer in memory.adapter if isinstance(layer, DeltaLayer)]


def _one_of_each(labels: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(labels), generator=generator)
    first = (labels[order][None] == classes[:, None]).float().argmax(-1)
    return order[first]


def _collect(
    memory: DeltaMemory,
    passes: Passes,
    people: SyntheticPeople,
    rng: random.Random,
    episodes: int,
    report: Callable[[str, float], None] | None,
) -> _Features:
    """Run the frozen backbone over told facts and their questions, and keep what enters the adapted layers."""
    relation_number = {r.id: i for i, r in enumerate(people.relations)}
    parts: dict[str, list[Tensor]] = {n: [] for n in ("told", "asking", "other_written", "other_read")}
    labels: dict[str, list[int]] = {"told": [], "asking": []}
    difficulty = Difficulty(facts=3, small_talk=1, long_values=0.3)
    size = 16
    for start in range(0, episodes, size):
        batch = [people.episode(rng, difficulty, "train") for _ in range(size)]
        write = write_batch(passes.form, batch)
        read = read_batch(passes.form, [(i, q) for i, e in enumerate(batch) for q in e.questions])
        topics = [[relation_number[q.topic] for q in e.questions] for e in batch]
        with _Recorder(memory) as seen, torch.no_grad(), memory.disabled():
            passes.model.base_model(
                input_ids=write.ids.to(passes.device),
                attention_mask=passes._mask(write.valid.to(passes.device)),
                position_ids=passes._positions(write.valid.to(passes.device)),
                past_key_values=passes.opening_cache(size),
            )
        hidden = seen.stacked()  # (L, B, T, hidden)
        told = write.values > 0
        parts["told"].append(hidden[:, told])
        for b, t in told.nonzero().tolist():
            mark = int(write.values[b, t])
            number = 0 if t == 0 or int(write.values[b, t - 1]) != mark else 1
            labels["told"].append(topics[b][mark - 1] * 2 + number)
        bland = (write.written & ~told).nonzero()
        bland = bland[torch.randperm(len(bland))[:160]]
        parts["other_written"].append(hidden[:, bland[:, 0], bland[:, 1]])
        with _Recorder(memory) as seen, torch.no_grad():
            passes.read(read, None)
        hidden = seen.stacked()
        kept = read.targets.shape[1]
        asking = torch.zeros_like(read.valid)
        asking[:, -kept:] = read.weights > 0  # the position before each value token
        parts["asking"].append(hidden[:, asking])
        flat_topics = [t for e in topics for t in e]
        for n, t in asking.nonzero().tolist():
            number = 0 if not asking[n, t - 1] else 1
            labels["asking"].append(flat_topics[n] * 2 + number)
        idle = (read.valid & ~asking).nonzero()
        idle = idle[torch.randperm(len(idle))[:160]]
        parts["other_read"].append(hidden[:, idle[:, 0], idle[:, 1]])
        if report is not None:
            report("reading hidden states", start / episodes)
    joined = {n: torch.cat(p, dim=1).float().cpu() for n, p in parts.items()}
    return _Features(
        joined["told"],
        torch.tensor(labels["told"]),
        joined["asking"],
        torch.tensor(labels["asking"]),
        joined["other_written"],
        joined["other_read"],
    )


class _Recorder:
    """Keeps what enters the adapted attention layers during one call."""

    def __init__(self, memory: DeltaMemory) -> None:
        self._memory = memory
        self._seen: list[Tensor] = []

    def __enter__(self) -> _Recorder:
        self._stop = self._memory.watch(lambda _, hidden: self._seen.append(hidden.detach().float().cpu()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def stacked(self) -> Tensor:
        """(L, B, T, hidden)."""
        return torch.stack(self._seen)
