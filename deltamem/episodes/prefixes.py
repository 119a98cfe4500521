"""Questions that the frozen backbone has read already, so that only their answers are left to be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ReadBatch, ask_tokens
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.state import MemoryState


@dataclass(frozen=True)
class Prefix:
    """A question up to the token before its answer, as keys and values.

    Attributes:
        cache: (tokens, layers, 2, heads, width), the keys and values of what follows the opening.
        last: the token after them; the first token of the answer is expected after it.
    """

    cache: Tensor
    last: int


@torch.no_grad()
def read_prefixes(
    passes: Passes, questions: Sequence[str], batch: int = 32, report: Callable[[float], None] = lambda _: None
) -> list[Prefix]:
    """Run questions through the frozen backbone.

    Args:
        passes: runs it.
        questions: their texts.
        batch: how many at a time, those of like length together.
        report: called with the share done.
    """
    tokens = [ask_tokens(passes.form, Question(text, "")) for text in questions]
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    opening = len(passes.form.opening)
    found: dict[int, Prefix] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        lengths = torch.tensor([len(tokens[i]) - 1 for i in part], device=passes.device)
        ids = torch.zeros(len(part), int(lengths.max()), dtype=torch.long, device=passes.device)
        for row, i in enumerate(part):
            ids[row, : lengths[row]] = torch.tensor(tokens[i][:-1])
        valid = torch.arange(ids.shape[1], device=passes.device) < lengths[:, None]
        cache = passes.opening_cache(len(part))
        with passes.memory.disabled():
            passes.model.base_model(
                input_ids=ids,
                attention_mask=F.pad(valid.long(), (opening, 0), value=1),
                position_ids=opening + torch.arange(ids.shape[1], device=passes.device).expand_as(ids),
                past_key_values=cache,
                use_cache=True,
            )
        pairs = [torch.stack([layer.keys, layer.values], dim=1)[..., opening:, :] for layer in cache.layers]
        whole = torch.stack(pairs, dim=1).permute(0, 4, 1, 2, 3, 5)  # (B, T, layers, 2, heads, width)
        for row, i in enumerate(part):
            found[i] = Prefix(whole[row, : lengths[row]].cpu().clone(), tokens[i][-1])
        report((start + len(part)) / len(order))
    return [found[i] for i in range(len(tokens))]


def answer_batch(asked: Sequence[tuple[int, Prefix, Sequence[int], Sequence[int]]]) -> ReadBatch:
    """Answers to be read after their prefixes, padded on the right.

    Args:
        asked: for each, the row of the state, the prefix, the answer's tokens (its end included), and for each of
            them whether it is part of a value (not 0).
    """
    length = max(len(answer) for _, _, answer, _ in asked)
    shape = (len(asked), length)
    ids, valid = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    targets, values = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
    starts = torch.zeros(shape, dtype=torch.bool)
    starts[:, 0] = True
    for i, (_, prefix, answer, marks) in enumerate(asked):
        ids[i, : len(answer)] = torch.tensor([prefix.last, *answer[:-1]])
        valid[i, : len(answer)] = True
        targets[i, : len(answer)] = torch.tensor(answer)
        values[i, : len(answer)] = torch.tensor(marks)
    return ReadBatch(ids, valid, torch.tensor([row for row, *_ in asked]), targets, values, starts, valid)


def read_answers(passes: Passes, prefixes: Sequence[Prefix], batch: ReadBatch, state: MemoryState) -> Tensor:
    """Logits (M, vocabulary) for the targets that count, row by row; only the answers read the state."""
    opening, count = len(passes.form.opening), len(prefixes)
    lengths = torch.tensor([len(p.cache) for p in prefixes])
    longest = int(lengths.max())
    before = torch.stack([F.pad(p.cache, (0, 0) * 4 + (longest - len(p.cache), 0)) for p in prefixes])
    before = before.to(passes.device).permute(2, 3, 0, 4, 1, 5)  # (layers, 2, N, heads, T, width)
    cache = passes.opening_cache(count)
    for i, (keys, values) in enumerate(before):
        cache.update(keys, values, i)
    own = torch.arange(longest) >= longest - lengths[:, None]
    mask = torch.cat([torch.ones(count, opening, dtype=torch.bool), own, batch.valid], dim=1)
    positions = opening + lengths[:, None] + torch.arange(batch.ids.shape[1])
    passes.memory.state = state.select(batch.rows.tolist())
    with passes.memory.reading():
        return passes.logits_at(
            batch.targets != -100,
            input_ids=batch.ids.to(passes.device),
            attention_mask=mask.long().to(passes.device),
            position_ids=positions.to(passes.device),
            past_key_values=cache,
        )
