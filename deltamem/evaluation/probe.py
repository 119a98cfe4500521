"""What a memory does to one answer: the next token with and without it, the reply, and which layers carry it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deltamem.episodes.batches import ask_tokens, read_batch
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.state import MemoryState


@dataclass(frozen=True)
class Probe:
    """A question put to a backbone with, without and with a shuffled memory.

    Attributes:
        question: as it was put.
        first: (text, probability with memory, without) of the likeliest first tokens of the reply, either way.
        replies: by ``with``, ``without`` and ``shuffled``. Greedy.
        divergence: (token of the reply with memory, KL in nats from the memory's next-token distribution there to the
            frozen backbone's).
        layers: (layer, KL in nats a token between the distributions with all layers and with all but this one, over
            the reply), the largest first.
    """

    question: str
    first: tuple[tuple[str, float, float], ...]
    replies: dict[str, str]
    divergence: tuple[tuple[str, float], ...]
    layers: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@torch.no_grad()
def probe(
    passes: Passes, state: MemoryState, question: str, max_tokens: int = 40, top: int = 8, seed: int = 0
) -> Probe:
    """Put a question.

    Args:
        passes: backbone and memory.
        state: of batch 1.
        question: the question, in a window of its own.
        max_tokens: longest reply.
        top: likeliest first tokens shown.
        seed: of the shuffling, which moves the numbers of a state about at random, layer by layer.
    """
    ask = ask_tokens(passes.form, Question(question, ""))
    states = {"with": state, "without": None, "shuffled": _shuffled(state, seed)}
    replies = {name: passes.reply([ask], s, max_tokens)[0] for name, s in states.items()}
    count = len(state.layers)
    # Sequence 0 is the state, number i + 1 the state without layer i.
    ablated = state.select([0] * (count + 1)).tensor.clone()
    for i in range(count):
        ablated[i, i + 1] = 0
    reply = Question(question, replies["with"] or " ")
    logits = _logits(passes, reply, MemoryState(ablated, state.layers), count + 1)
    frozen = _logits(passes, reply, None, 1)[0]
    whole = logits[0]
    by_layer = [(state.layers[i], float(_kl(whole, logits[i + 1]).mean())) for i in range(count)]
    decode = passes.form.tokenizer.decode
    tokens = [decode([token]) for token in passes.form.text(reply.answer)] + ["(end)"]
    p, q = whole[0].softmax(-1), frozen[0].softmax(-1)
    likely = dict.fromkeys([*p.topk(top).indices.tolist(), *q.topk(top).indices.tolist()])
    ranked = sorted(likely, key=lambda t: -max(float(p[t]), float(q[t])))[:top]
    return Probe(
        question=question,
        first=tuple((decode([t]), float(p[t]), float(q[t])) for t in ranked),
        replies=replies,
        divergence=tuple(zip(tokens, _kl(whole, frozen).tolist(), strict=True)),
        layers=tuple(sorted(by_layer, key=lambda pair: -pair[1])),
    )


def _logits(passes: Passes, reply: Question, state: MemoryState | None, count: int) -> Tensor:
    """(count, tokens of the reply + 1, vocabulary) float32."""
    batch = read_batch(passes.form, [(row, reply) for row in range(count)])
    logits: Tensor = passes.read(batch, state).float().unflatten(0, (count, -1))
    return logits


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) at each position of logits (tokens, vocabulary)."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    divergence: Tensor = (p.exp() * (p - q)).sum(-1)
    return divergence


def _shuffled(state: MemoryState, seed: int) -> MemoryState:
    generator = torch.Generator().manual_seed(seed)
    flat = state.tensor.flatten(2)
    moved: Sequence[Tensor] = [
        layer[:, torch.randperm(layer.shape[-1], generator=generator).to(layer.device)] for layer in flat
    ]
    return MemoryState(torch.stack(list(moved)).view_as(state.tensor), state.layers)
