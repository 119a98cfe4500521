"""The KV cache of an ordinary call: transformers' own, which grows as it is fed."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache


class PlainCache:
    """What the window does with a cache, for one that needs little of it.

    Args:
        model: the backbone.

    Attributes:
        cache: what the model is given.
    """

    def __init__(self, model: Any) -> None:
        self.cache = DynamicCache(config=model.config)

    def make_room(self, tokens: int) -> None:
        """Nothing: it grows by itself."""

    def fed(self, tokens: int) -> None:
        """Nothing: it counts by itself."""

    def cut(self, length: int) -> bool:
        """Hold the first tokens alone; false where that can't be had."""
        if any(getattr(layer, "is_sliding", False) for layer in self.cache.layers):
            return False  # what left a sliding window can't be had back
        # Layer by layer: a call that failed halfway left some of them longer than others.
        for layer in self.cache.layers:
            layer.crop(min(0, length - layer.get_seq_length()))
        return all(layer.get_seq_length() == length for layer in self.cache.layers)
