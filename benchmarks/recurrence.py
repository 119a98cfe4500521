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


def once(rule: Callable[..., tuple[Tensor, Tensor]], mode: str, gates: int, length: int, backward: bool) -> None:
    """A pass over random signals, with one gate a row (8) or one a head (1)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, b = (torch.randn(1, length, 1, n, generator=generator) for n in (8, 8, 8, gates))
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

    for mode, gates in (("standard", 8), ("no_lambda", 8), ("standard", 1), ("no_lambda", 1)):
        name = f"{mode}, one gate a {'row' if gates > 1 else 'head'}, T = 1024"
        for backward, repeats in ((False, 15), (True, 7)):
            work = partial(once, mode=mode, gates=gates, length=1024, backward=backward)
            row(f"{name}, {'forward and backward' if backward else 'forward'}", work, repeats)
    layers = [DeltaLayer(DeltaMemConfig(), 576, dict.fromkeys("qkvo", 576)) for _ in range(30)]
    hidden = torch.randn(1, 512, 576)
    row("training step, 512 tokens, 30 layers", partial(training_step, layers=layers, hidden=hidden), 3)


if __name__ == "__main__":
    main()
