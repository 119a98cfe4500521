"""Who reads the state, and what of all layers' reads is heard for a token.

A joint gate says whether anything read is heard. A later reader asks the same state with queries, read gates and a
joint gate of its own, and has a route, which says whether its reads count and not those of the readers before it. What
is read plainly (`DeltaMemConfig.plain_read`) is heard wherever one of them is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig

T = TypeVar("T", float, Tensor)


class Reader(NamedTuple):
    """A later reader, by the names of its tensors in a layer.

    Attributes:
        instead: of what the first reader asks with, what this one has in its place.
        route: of its route, before ``_proj`` and ``_bias``.
    """

    instead: Mapping[str, str]
    route: str


def _reader(name: str, route: str) -> Reader:
    own = {"memory_q_proj": "q_proj", "read_gate_proj": "read_gate_proj", "joint_gate_proj": "joint_gate_proj"}
    return Reader({first: f"{name}_{part}" for first, part in own.items()}, route)


SECOND, THIRD = _reader("second", "route"), _reader("third", "third_route")


def later_readers(config: DeltaMemConfig) -> tuple[Reader, ...]:
    """Those that an adapter has after the first, in order."""
    return (*[SECOND] * config.second_reader, *[THIRD] * config.third_reader)


def jointly_open(logits: Tensor) -> Tensor:
    """How far a gate of all layers stands open, 0 to 1, from the sum of their `DeltaLayer.joint_logits`."""
    # Not a sigmoid: what is shut is to read nothing at all, and what is open all there is.
    return (0.5 + 0.5 * logits).clamp(0, 1)


def shares_of(logits: Tensor, plain_read: bool = False) -> Tensor:
    """What each reader's reads count for, (..., readers), and after them what is read plainly, from the sum of layers'
    `DeltaLayer.joint_logits`.
    """
    return torch.stack(shared_out(jointly_open(logits).unbind(-1), plain_read), dim=-1)


def shared_out(opened: Sequence[T], plain_read: bool = False) -> list[T]:
    """The same from how far those gates stand open: the first reader's, and each later one's and its route."""
    first, *later = opened
    left: Any = 1.0
    shares: list[T] = []
    for own, route in reversed(list(zip(later[::2], later[1::2], strict=True))):
        shares.append(left * route * own)
        left = left * (1 - route)
    every: list[Any] = [left * first, *reversed(shares)]
    return [*every, sum(every)] if plain_read else every


def heard(reads: Tensor, shares: Tensor) -> Tensor:
    """What is heard of a layer's reads, (..., n), from those that `shares_of` says shares of, one after the other."""
    each: Tensor = reads.unflatten(-1, (shares.shape[-1], -1)) * shares[..., None]
    return each.sum(-2)
