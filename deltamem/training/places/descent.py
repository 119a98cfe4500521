"""What fits of one part of the adapter share: a short descent with Adam, and noise on hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltamem.training.places.bank import Report

_RATE, _WARMUP = 2e-3, 20
_NOISE = 0.2
"""On hidden states, relative to their spread."""


def descend(
    weights: Sequence[Tensor],
    loss: Callable[[], Tensor],
    steps: int,
    what: str,
    report: Report | None = None,
    clip: float | None = None,
    rates: Sequence[float] | None = None,
) -> None:
    """Steps of Adam with a warm-up and a cosine decay.

    Args:
        weights: what is trained.
        loss: of a step.
        steps: how many.
        what: is being done, for `report`.
        report: called with that and the share done.
        clip: largest gradient norm.
        rates: of each weight, relative; None is 1 for all.
    """
    scales = [1.0] * len(weights) if rates is None else rates
    optimizer = torch.optim.Adam(
        [{"params": [w], "scale": scale} for w, scale in zip(weights, scales, strict=True)], lr=_RATE, betas=(0.9, 0.98)
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            rate = _RATE * min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = group["scale"] * rate
        found = loss()
        optimizer.zero_grad()
        found.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        if report is not None and step % 20 == 0:
            report(what, step / steps)


def some_of(there: int, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of some of so many, (count,); none where there are none."""
    return torch.randint(max(1, there), (count if there else 0,), generator=generator)


def noisy(hidden: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    """Hidden states (layers, n, hidden size) with uniform noise, in each layer by its `spread` (layers, 1, 1)."""
    noise = (torch.rand(hidden.shape[1:], generator=generator) - 0.5) * math.sqrt(12)
    return hidden.float() + _NOISE * spread * noise.to(hidden.device)
