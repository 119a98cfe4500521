"""What is in use of an adapted layer while the model runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.attach import AttentionSite
from deltamem.call import Call
from deltamem.key_pairs import Lend
from deltamem.layer import DeltaLayer


class Entry(NamedTuple):
    """What a layer saw when a call entered it; a checkpointed backward needs to see it again."""

    call: Call
    state: Tensor
    collecting: bool
    lend: Lend | None = None


@dataclass
class RunningLayer:
    """A layer, its state, and what it has read in the call that is on.

    Attributes:
        site: where it sits.
        weights: the adapter's.
        state: (B, H, r, r).
        reads: (B, T, H*r), of two readers one after the other (B, T, 2*H*r); None where it reads nothing.
        joint: its part in the logits of gates of all layers, (B, T, 1 or 3), where there are such.
        asked: its part in what a table's entry is looked up by, (B, T, k), where there is one.
        segment_sum: hidden states that an open segment has gathered, (B, hidden).
        replay: what the recomputation that is on is to see.
        replays: what recomputations may want to see, by the address of the layer's input.
    """

    site: AttentionSite
    weights: DeltaLayer
    state: Tensor
    reads: Tensor | None = None
    joint: Tensor | None = None
    asked: Tensor | None = None
    segment_sum: Tensor | None = None
    replay: Entry | None = None
    replays: OrderedDict[int, Entry] = field(default_factory=OrderedDict)


def usable(state: Tensor) -> Tensor:
    """A state made under inference mode cannot enter a graph; a copy of it can."""
    return state.clone() if state.is_inference() and not torch.is_inference_mode_enabled() else state
