"""Keys in pairs: the key of a written token is that of its own hidden state and of the token's before it, added up.

Where the token before belongs to a value as well, its own may count for less (`own_share`), by how far that one's write
gate stands open. So a token lends its gate beside its key.

What a token was lent it may pass on, by a share of it (`fading`): the word that a value is about stands some tokens
before it. Its own then counts for less everywhere.

Only a token that was written itself lends to the next one, so a message begins without, wherever its calls are cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig

_AT_ONCE = 64
"""Tokens whose passing on is worked out at once."""
Lend = Callable[[Tensor], Tensor]
"""Given what tokens lend (B, T, n), see `lendable`: what each is lent by the one before it, of the same shape."""


def writes(valid: Tensor | None, written: Tensor | None) -> Tensor | None:
    """Which tokens of a call are written, (B, T); None for all."""
    if valid is None or written is None:
        return written if valid is None else valid
    return valid & written


def lent(keys: Tensor, first: Tensor | None, there: Tensor | None, fading: float = 0.0) -> Tensor:
    """What each token is lent by the one before it.

    Args:
        keys: (B, T, n), what each lends of its own.
        first: (B, n), lent to the first token; None for nothing.
        there: (B, T), false for tokens that lend nothing; None for none of them.
        fading: what a token passes on of what it was lent.

    Returns:
        (B, T, n).
    """
    return _shifted(passed_on(keys, first, there, fading), first)


def passed_on(keys: Tensor, first: Tensor | None, there: Tensor | None, fading: float) -> Tensor:
    """What each token lends, its own and what it passes on, (B, T, n); see `lent`."""
    own = keys if there is None else keys * there[..., None]
    if not fading:
        return own
    if keys.shape[1] == 1:
        before = None if first is None else fading * first.to(keys)[:, None]
        return own if before is None else own + (before if there is None else before * there[..., None])
    everywhere = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
    goes_on = everywhere if there is None else there.to(keys.device)
    held, parts = None if first is None else first.to(keys), []
    for part, on in zip(own.split(_AT_ONCE, 1), goes_on.split(_AT_ONCE, 1), strict=True):
        steps = torch.arange(part.shape[1], device=keys.device)
        ago = steps[:, None] - steps
        # Nothing is passed on by a token that lends nothing: from there to here there is none of those.
        ends = (~on).cumsum(1)
        reaches = (ends[:, :, None] == ends[:, None]) & (ago >= 0)
        shares = torch.where(reaches, fading ** ago.clamp_min(0), 0.0).to(keys)
        found = shares @ part
        if held is not None:
            still = torch.where(ends == 0, fading ** (steps + 1), 0.0).to(keys)
            found = found + still[..., None] * held[:, None]
        parts.append(found)
        held = found[:, -1]
    return torch.cat(parts, dim=1)


def _shifted(lends: Tensor, first: Tensor | None) -> Tensor:
    start = torch.zeros_like(lends[:, 0]) if first is None else first.to(lends)
    return torch.cat([start[:, None], lends[:, :-1]], dim=1)


def lent_width(config: DeltaMemConfig) -> int:
    """How many numbers a token lends: its key's, and one for its write gates where those count."""
    return config.num_state_heads * config.rank + (config.own_share < 1 and not config.fading)


def lendable(config: DeltaMemConfig, keys: Tensor, gates: Tensor) -> Tensor:
    """What tokens lend, (..., n).

    Args:
        config: of the adapter.
        keys: (..., H*r), before they are normalised.
        gates: (..., H or H*r), of writing, before they are opened or shut.
    """
    if config.own_share == 1 or config.fading:
        return keys
    opened, floor = torch.sigmoid(gates.detach()), config.write_gate_floor
    above = ((opened - floor) / (1 - floor)).clamp_min(0)
    return torch.cat([keys, above.mean(-1, keepdim=True)], dim=-1)


def paired(config: DeltaMemConfig, products: Tensor, added: Tensor) -> Tensor:
    """`DeltaLayer.told_products` (..., n) with what is lent (..., m) added to the keys, which come first."""
    width = config.num_state_heads * config.rank
    keys, rest = products[..., :width], products[..., width:]
    if config.fading:
        keys = config.own_share * keys
    elif config.own_share < 1:
        keys = keys * (1 - (1 - config.own_share) * added[..., width:])
    return torch.cat([keys + added[..., :width], rest], dim=-1)


class Lending:
    """What the last token of a call lends to the first of the next, layer by layer.

    The tensors stay where they are, because a recorded call finds them by their address.

    Args:
        layers: how many there are.
        fading: what a token passes on of what it was lent.
    """

    def __init__(self, layers: int, fading: float = 0.0) -> None:
        self._fading = fading
        self._held: list[Tensor | None] = [None] * layers
        self._some = False

    def lend(self, layer: int, keys: Tensor, there: Tensor | None) -> Tensor:
        """`lent` in a call of the layer; what its last tokens lend is kept for the next call."""
        first = self.get(layer, keys)
        lends = passed_on(keys, first, there, self._fading)
        found = _shifted(lends, first)
        self.keep(layer, lends[:, -1].detach())
        return found

    def get(self, layer: int, like: Tensor) -> Tensor | None:
        """What is lent to the first tokens of a call, (B, n), of the batch and on the device of `like` (B, ...)."""
        held = self._held[layer]
        return held if held is not None and (len(held), held.device) == (len(like), like.device) else None

    def given(self, like: Tensor) -> Tensor | None:
        """`get` of all layers, (layers, B, n); None where one has nothing."""
        held = [found for i in range(len(self._held)) if (found := self.get(i, like)) is not None]
        return torch.stack(held) if len(held) == len(self._held) else None

    def keep(self, layer: int, last: Tensor) -> None:
        """Keep what the last tokens of a call lend, (B, n)."""
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
        """A recorded call may lend something without this being seen; `nothing` (B, n) is what it finds at first."""
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
