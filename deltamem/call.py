"""One call of the model: how it is to be run, and what is worked out once for all of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from deltamem.errors import StateError
from deltamem.segments import SegmentPlan, plan_segments

Mode = Literal["write", "read", "off"]


@dataclass(frozen=True)
class Directions:
    """How the next calls are to be run; set by `DeltaMemory`'s context managers."""

    mode: Mode = "read"
    segments: Tensor | None = None
    padding: Tensor | None = None
    written: Tensor | None = None
    local_gradient: bool = False
    reads: Tensor | None = None


class Single(NamedTuple):
    """What the one token of a call of one sequence does, on a CPU."""

    reads: bool
    writes: bool


@dataclass
class Call:
    """One call of the model: its directions, and what is worked out once for all layers."""

    directions: Directions
    attention_mask: Any = None
    _prepared: bool = False
    valid: Tensor | None = None
    written: Tensor | None = None
    silent: Tensor | None = None
    mute: bool = False
    plan: SegmentPlan | None = None
    single: Single | None = None

    def prepare(self, batch: int, tokens: int, device: torch.device, segment_writes: bool) -> None:
        """Work out padding and segments, now that the call's shape is known."""
        if self._prepared:
            return
        self.valid = self._valid(batch, tokens, device)
        if self.directions.written is not None:
            self.written = self.directions.written.to(device=device, dtype=torch.bool)
            if tuple(self.written.shape) != (batch, tokens):
                raise StateError(f"written is {tuple(self.written.shape)} where the call has {(batch, tokens)} tokens")
        if self.directions.reads is not None:
            if tuple(self.directions.reads.shape) != (batch, tokens):
                raise StateError(
                    f"reads is {tuple(self.directions.reads.shape)} where the call has {(batch, tokens)} tokens"
                )
            self.silent = ~self.directions.reads.to(device=device, dtype=torch.bool)
            self.mute = not bool(self.directions.reads.any())
        if segment_writes and self.directions.mode == "write" and self.directions.segments is not None:
            segments = self.directions.segments.to(device)
            if tuple(segments.shape) != (batch, tokens):
                raise StateError(f"segments are {tuple(segments.shape)} where the call has {(batch, tokens)} tokens")
            self.plan = plan_segments(segments, self.valid)
        if (batch, tokens) == (1, 1) and device.type == "cpu":  # on a GPU these questions would wait for it
            there = self.valid is None or bool(self.valid)
            self.single = Single(
                reads=there and not (self.silent is not None and self.silent),
                writes=there and self.directions.mode == "write" and (self.written is None or bool(self.written)),
            )
        self._prepared = True

    def gathered(self) -> Tensor | None:
        """Tokens that an open segment takes in, (B, T), or None for all."""
        if self.valid is None or self.written is None:
            return self.valid if self.written is None else self.written
        return self.valid & self.written

    def _valid(self, batch: int, tokens: int, device: torch.device) -> Tensor | None:
        mask = self.directions.padding
        if mask is not None:
            if tuple(mask.shape) != (batch, tokens):
                raise StateError(f"padding is {tuple(mask.shape)} where the call has {(batch, tokens)} tokens")
            return ~mask.to(device=device, dtype=torch.bool)
        mask = self.attention_mask
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            if batch == 1:
                return None  # a single sequence is never padded in practice
            raise StateError(
                "the model was called with an attention mask that is not 2-D; say which tokens are padding with "
                "writing(padding=...) or reading(padding=...)"
            )
        # With a KV cache the mask covers the past as well; the call's own tokens are the last columns.
        valid = mask[:, -tokens:].to(device=device, dtype=torch.bool)
        if tuple(valid.shape) != (batch, tokens):
            raise StateError(f"the attention mask is {tuple(mask.shape)} where the call has {(batch, tokens)} tokens")
        return valid
