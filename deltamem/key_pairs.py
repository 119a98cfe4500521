"""Keys in pairs: the key of a written token is a share of that of its own hidden state and that of the token's before
it, added up.

Only a token that was written itself lends to the next one, so a message begins without, wherever its calls are cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Lend = Callable[[Tensor], Tensor]
"""Given keys (B, T, H*r) before they are normalised, what each is lent by the token before it, of the same shape."""


def writes(valid: Tensor | None, written: Tensor | None) -> Tensor | None:
    """Which tokens of a call are written, (B, T); None for all."""
    if valid is None or written is None:
        return written if valid is None else valid
    return valid & written


def lent(keys: Tensor, first: Tensor | None, there: Tensor | None) -> Tensor:
    """What each token is lent by the one before it.

    Args:
        keys: (B, T, H*r), before they are normalised.
        first: (B, H*r), lent to the first token; None for nothing.
        there: (B, T), false for tokens that lend nothing; None for none of them.

    Returns:
        (B, T, H*r).
    """
    own = keys if there is None else keys * there[..., None]
    start = torch.zeros_like(keys[:, 0]) if first is None else first.to(keys)
    return torch.cat([start[:, None], own[:, :-1]], dim=1)


def paired(products: Tensor, added: Tensor, own_share: float) -> Tensor:
    """`DeltaLayer.told_products` (B, T, n) with what is lent (B, T, H*r) added to `own_share` of the keys, which come
    first.
    """
    width = added.shape[-1]
    return torch.cat([own_share * products[..., :width] + added, products[..., width:]], dim=-1)


class Lending:
    """What the last token of a call lends to the first of the next, layer by layer.

    The tensors stay where they are, because a recorded call finds them by their address.

    Args:
        layers: how many there are.
    """

    def __init__(self, layers: int) -> None:
        self._held: list[Tensor | None] = [None] * layers
        self._some = False

    def lend(self, layer: int, keys: Tensor, there: Tensor | None) -> Tensor:
        """`lent` in a call of the layer; what its last tokens lend is kept for the next call."""
        found = lent(keys, self.get(layer, keys), there)
        last = keys[:, -1].detach()
        self.keep(layer, last if there is None else last * there[:, -1:])
        return found

    def get(self, layer: int, like: Tensor) -> Tensor | None:
        """What is lent to the first tokens of a call, (B, H*r), of the batch and on the device of `like` (B, ...)."""
        held = self._held[layer]
        return held if held is not None and (len(held), held.device) == (len(like), like.device) else None

    def given(self, like: Tensor) -> Tensor | None:
        """`get` of all layers, (layers, B, H*r); None where one has nothing."""
        held = [found for i in range(len(self._held)) if (found := self.get(i, like)) is not None]
        return torch.stack(held) if len(held) == len(self._held) else None

    def keep(self, layer: int, last: Tensor) -> None:
        """Keep what the last tokens of a call lend, (B, H*r)."""
        held = self._held[layer]
        if held is None or held.shape != last.shape or held.device != last.device:
            with torch.inference_mode(False):
                held = self._held[layer] = torch.empty_like(last, requires_grad=False)
        with torch.no_grad():
            held.copy_(last)
        self._some = True

    def end(self) -> None:
        """The next token has none before it."""
        if self._some:
            self._some = False
            for held in self._held:
                if held is not None:
                    held.zero_()

    def expect(self, nothing: Tensor) -> None:
        """A recorded call may lend something without this being seen; `nothing` (B, H*r) is what it finds at first."""
        for layer in range(len(self._held)):
            if self.get(layer, nothing) is None:
                self.keep(layer, nothing)
        self._some = True

    def copy(self) -> list[Tensor | None]:
        """What is held, for `put_back`."""
        return [held if held is None else held.clone() for held in self._held]

    def put_back(self, held: list[Tensor | None]) -> None:
        """Hold what was held when the copy was made."""
        for mine, before in zip(self._held, held, strict=True):
            if mine is not None:
                mine.zero_() if before is None else mine.copy_(before)
