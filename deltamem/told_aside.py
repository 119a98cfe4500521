"""Calls in which nothing reads: what layers are to write waits until there is more of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from deltamem.call import Call
from deltamem.running import RunningLayer, usable
from deltamem.side_by_side import MOST_TOKENS, write_side_by_side

Trace = Callable[[int, Tensor], None]


class ToldAside:
    """What was told in a call and is not written yet.

    Args:
        layers: all of them, in order; writing changes their states.
    """

    def __init__(self, layers: Sequence[RunningLayer]) -> None:
        self._layers = layers
        self._told: list[tuple[int, Tensor]] = []

    def add(self, i: int, products: Tensor, call: Call, trace: Trace | None) -> None:
        """Layer i is to write `DeltaLayer.told_products` (B, T, n); everything there is is written once it is much."""
        if self._told and self._told[0][1].device != products.device:
            self.write(call, trace)
        self._told.append((i, products))
        if len(self._told) * products.shape[0] * products.shape[1] >= MOST_TOKENS:
            self.write(call, trace)

    def write(self, call: Call, trace: Trace | None) -> None:
        """Write what there is; `trace` is given each layer's write gates."""
        told, self._told = self._told, []
        if not told:
            return
        numbers, products = zip(*told, strict=True)
        layers = [self._layers[i] for i in numbers]
        device = products[0].device
        valid, written = (mask if mask is None else mask.to(device) for mask in (call.valid, call.written))
        states = [usable(layer.state).to(device) for layer in layers]
        after, gates = write_side_by_side(layers[0].weights.config, products, states, valid, written)
        for layer, state, of_layer in zip(layers, after, gates, strict=True):
            layer.state = state
            if trace is not None:
                trace(layer.site.number, of_layer)

    def drop(self) -> None:
        """Forget what there is."""
        self._told = []
