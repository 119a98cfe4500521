"""A KV cache whose keys and values stay where they are, so that a call for one token can be recorded and replayed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StaticCache

from deltamem.errors import BackboneError

SMALLEST = 512
"""Tokens a new cache has room for. Every token attends to all of it, full or not."""


class GrowingCache:
    """A static cache that is copied into one of twice the size when it is full.

    Args:
        model: the backbone.
        budget: most tokens it will hold.

    Raises:
        BackboneError: the backbone has layers with a sliding window, whose static form can't be cut back.

    Attributes:
        cache: what the model is given; another object after it has grown.
        length: tokens in it.
    """

    def __init__(self, model: Any, budget: int) -> None:
        self._config, self._budget = model.config, budget
        self.length = 0
        self.cache = self._of_size(min(SMALLEST, budget))

    def _of_size(self, size: int) -> StaticCache:
        cache = StaticCache(config=self._config, max_cache_len=size)
        if any(layer.is_sliding for layer in cache.layers):
            raise BackboneError("this backbone has layers with a sliding window; use --compile off")
        return cache

    def make_room(self, tokens: int) -> None:
        """See to it that so many more tokens can be fed."""
        size = self.cache.layers[0].max_cache_len
        if self.length + tokens <= size:
            return
        while size < self.length + tokens:
            size *= 2
        old, self.cache = self.cache, self._of_size(max(self.length + tokens, min(size, self._budget)))
        for before, after in zip(old.layers, self.cache.layers, strict=True):
            if before.is_initialized:
                after.lazy_initialization(before.keys, before.values)
                for name in ("keys", "values"):
                    getattr(after, name)[:, :, : self.length] = getattr(before, name)[:, :, : self.length]
        self.cut(self.length)

    def fed(self, tokens: int) -> None:
        """So many tokens went in."""
        self.length += tokens

    @torch.inference_mode()
    def cut(self, length: int) -> bool:
        """Hold the first tokens alone. What is behind them is overwritten, and hidden until then. Always true."""
        self.length = length
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.cumulative_length.fill_(length)
        return True
