"""The recurrence alone: the chunked form against the token loop, and a training step against the same step with it.

    python benchmarks/recurrence.py

One sequence, one head, r = 8. The training step is the writing of one episode of 512 tokens into the memory of the
small backbone's shape (30 layers, 576 wide; only the adapter works) and the gradient of every adapter weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from timing import by_turns, machine
from torch import Tensor

import deltamem.layer
from deltamem import DeltaMemConfig
from deltamem.layer import DeltaLayer
from deltamem.recurrence import delta_rule, delta_rule_naive, gates_from


def once(rule: Callable[..., tuple[Tensor, Tensor]], mode: str, length: int, backward: bool) -> None:
    """A pass over random signals."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, b = (torch.randn(1, length, 1, 8, generator=generator) for _ in range(4))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    leaves = [x.requires_grad_(backward) for x in (q, k, v, torch.sigmoid(b))]
    reads, state = rule(*leaves[:3], gates_from(leaves[3], 1 - leaves[3], mode), torch.zeros(1, 1, 8, 8))
    if backward:
        (reads.sum() + state.sum()).backward()


def training_step(rule: Callable[..., tuple[Tensor, Tensor]], layers: list[DeltaLayer], hidden: Tensor) -> None:
    """Signals, recurrence, and the gradient of every weight."""
    with mock.patch.object(deltamem.layer, "delta_rule", rule):
        for layer in layers:
            reads, state = layer.read_and_write(hidden, torch.zeros(1, 1, 8, 8))
            (reads.sum() + state.sum()).backward()


def main() -> None:
    """Print a table."""
    torch.manual_seed(0)
    print(f"{machine()}\n\n| what | token loop, ms | chunked, ms | times faster |\n| --- | --- | --- | --- |")

    def row(name: str, work: Callable[..., None], repeats: int) -> None:
        took = by_turns({"loop": partial(work, delta_rule_naive), "chunked": partial(work, delta_rule)}, repeats)
        loop, chunked = (1e3 * took[n] for n in ("loop", "chunked"))
        print(f"| {name} | {loop:.1f} | {chunked:.2f} | {loop / chunked:.0f} |", flush=True)

    for mode in ("standard", "no_lambda"):
        row(f"{mode}, T = 1024, forward", partial(once, mode=mode, length=1024, backward=False), 15)
        row(f"{mode}, T = 1024, forward and backward", partial(once, mode=mode, length=1024, backward=True), 9)
    layers = [DeltaLayer(DeltaMemConfig(), 576, dict.fromkeys("qkvo", 576)) for _ in range(30)]
    hidden = torch.randn(1, 512, 576)
    row("training step, 512 tokens, 30 layers", partial(training_step, layers=layers, hidden=hidden), 3)


if __name__ == "__main__":
    main()
