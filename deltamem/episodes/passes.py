"""The two passes of an episode: write the histories, then ask the questions.

The opening of a conversation (the system prompt) is run by the frozen backbone, here as in a chat, so its keys and
values are the same for every row and are worked out once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import ReadBatch, WriteBatch, left_padded
from deltamem.memory import DeltaMemory
from deltamem.replies import opened
from deltamem.state import MemoryState


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


class Passes:
    """Runs batches through a backbone with memory.

    Args:
        memory: attached to the backbone.
        form: the conversation's fixed parts.
    """

    def __init__(self, memory: DeltaMemory, form: ChatFormat) -> None:
        self.memory = memory
        self.form = form
        self.model: Any = memory.model
        self.device = next(self.model.parameters()).device
        with torch.no_grad(), memory.disabled():
            out = self.model(input_ids=torch.tensor([form.opening], device=self.device), use_cache=True)
        self._opening = [(layer.keys, layer.values) for layer in out.past_key_values.layers]

    def opening_cache(self, batch: int) -> DynamicCache:
        """A KV cache that holds the opening, for a batch."""
        cache = DynamicCache(config=self.model.config)
        for i, (keys, values) in enumerate(self._opening):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), i)
        return cache

    def _mask(self, valid: Tensor) -> Tensor:
        before = torch.ones(valid.shape[0], len(self.form.opening), dtype=torch.long, device=valid.device)
        return torch.cat([before, valid.long()], dim=1)

    def _positions(self, valid: Tensor) -> Tensor:
        return (len(self.form.opening) - 1 + valid.long().cumsum(-1)).clamp_min(0)

    def write(self, batch: WriteBatch, local_gradient: bool = True, start: MemoryState | None = None) -> MemoryState:
        """Write histories into empty states (or those of `start`), and return what is left.

        With `local_gradient` the gradient reaches the weights through the state alone; the backbone runs without.
        """
        written = self._written(batch, start)
        self._begin(batch, start)
        segments = batch.segments.to(self.device) if self.memory.config.writes_segments else None
        mode = self.memory.writing(segments=segments, written=written, local_gradient=local_gradient, reads=batch.reads)
        with torch.no_grad() if local_gradient else nullcontext(), mode:
            self.run(batch)
        return self.memory.state

    def _begin(self, batch: WriteBatch, start: MemoryState | None) -> None:
        if start is None:
            self.memory.reset(len(batch.ids))
        else:
            self.memory.state = start

    def _written(self, batch: WriteBatch, start: MemoryState | None) -> Tensor:
        """What is written of what was said, (B, T): where replies to what tells nothing are not, that costs a pass."""
        written, floor = batch.written.to(self.device), self.memory.config.reply_floor
        if not floor:
            return written
        told = written & ~batch.reads.to(self.device)
        most = torch.zeros(len(told), int(batch.segments.max()) + 2, device=self.device)
        if floor < 1:
            self._begin(batch, start)
            gates: list[Tensor] = []
            tracing = self.memory.tracing(lambda _, seen: gates.append(seen))
            with torch.no_grad(), tracing, self.memory.writing(written=written, reads=batch.reads):
                self.run(batch)
            most.scatter_reduce_(1, batch.segments.to(self.device).clamp_min(0), opened(gates) * told, "amax")
        # A reply comes after the message that it is a reply to.
        before = (batch.segments.to(self.device) - 1).clamp_min(0)
        return told | (written & (most.gather(1, before) > floor))

    def run(self, batch: WriteBatch) -> None:
        """Put histories through the backbone in whatever mode the memory is in."""
        ids, valid = batch.ids.to(self.device), batch.valid.to(self.device)
        self.model.base_model(
            input_ids=ids,
            attention_mask=self._mask(valid),
            position_ids=self._positions(valid),
            past_key_values=self.opening_cache(len(ids)),
            use_cache=True,
        )

    def read(self, batch: ReadBatch, state: MemoryState | None) -> Tensor:
        """Logits (M, vocabulary) for the M targets that count, row by row; a state of None asks the frozen backbone."""
        count, kept = batch.targets.shape
        valid = batch.valid.to(self.device)
        if state is None:
            mode = self.memory.disabled()
        else:
            self.memory.state = state.select(batch.rows.tolist())
            mode = self.memory.reading(reads=batch.reads)
        with mode:
            return self.logits_at(
                batch.targets != -100,
                input_ids=batch.ids.to(self.device),
                attention_mask=self._mask(valid),
                position_ids=self._positions(valid),
                past_key_values=self.opening_cache(count),
                logits_to_keep=kept,
            )

    def look(self, batch: ReadBatch) -> None:
        """Put questions through the frozen backbone, for what its layers see; no logits are worked out."""
        valid = batch.valid.to(self.device)
        with self.memory.disabled():
            self.model.base_model(
                input_ids=batch.ids.to(self.device),
                attention_mask=self._mask(valid),
                position_ids=self._positions(valid),
                past_key_values=self.opening_cache(len(valid)),
                use_cache=True,
            )

    def logits_at(self, present: Tensor, **inputs: Any) -> Tensor:
        """Run the backbone, and give logits (M, vocabulary) for the positions that are present (N, K), row by row.

        The output layer is the largest product by far, so it gets these positions and no others.
        """
        present = present.to(self.device)
        head = self.model.get_output_embeddings()
        with _removing(head.register_forward_pre_hook(lambda _, args: (args[0][present],))):
            logits: Tensor = self.model(use_cache=True, **inputs).logits
        return logits

    @torch.no_grad()
    def reply(self, asks: Sequence[list[int]], state: MemoryState | None, max_tokens: int) -> list[str]:
        """Greedy replies to `ask_tokens`, number i asked of the state's sequence i (None: the frozen backbone)."""
        ids, valid = (x.to(self.device) for x in left_padded(asks))
        mask, positions = self._mask(valid), self._positions(valid)
        if state is not None:
            self.memory.state = state
        cache = self.opening_cache(len(asks))
        said: list[list[int]] = [[] for _ in asks]
        done = [False] * len(asks)
        reads = torch.zeros_like(ids, dtype=torch.bool)
        for _ in range(max_tokens):
            reads[:, -1] = True  # of what is asked, only the token before the reply
            with self.memory.disabled() if state is None else self.memory.reading(reads=reads):
                out = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            reads = torch.zeros_like(ids, dtype=torch.bool)
            mask = F.pad(mask, (0, 1), value=1)
            positions = positions[:, -1:] + 1
            for i, token in enumerate(ids[:, 0].tolist()):
                done[i] = done[i] or token in self.form.stops
                if not done[i]:
                    said[i].append(token)
            if all(done):
                break
        return [self.form.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]
