"""Choosing the next token, with transformers' own logits processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_LONGEST = 512
"""Tokens of the longest reply where nobody says otherwise."""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. None means the model's own default.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: keep the smallest set of tokens with this much probability.
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep tokens at least this likely relative to the most likely.
        repetition_penalty: 1 is none.
        seed: of the draws; None is a different one each time.
        max_tokens: longest reply.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "temperature": (0, 100),
            "top_p": (0, 1),
            "top_k": (0, 10**9),
            "min_p": (0, 1),
            "repetition_penalty": (1e-3, 100),
            "max_tokens": (1, 10**9),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")

    @property
    def limit(self) -> int:
        """Most tokens of a reply."""
        return self.max_tokens or _LONGEST

    def resolved(self, generation_config: Any) -> Sampling:
        """The same with the model's defaults filled in."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {name: getattr(generation_config, name, None) for name in given if name not in ("seed", "max_tokens")}
        if not getattr(generation_config, "do_sample", None):
            own["temperature"] = 0.0
        elif own["temperature"] is None:
            own["temperature"] = 1.0
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": _LONGEST}
        merged: dict[str, Any] = {
            name: value if value is not None else own.get(name) if own.get(name) is not None else neutral.get(name)
            for name, value in given.items()
        }
        return Sampling(**merged)


class Sampler:
    """Draws tokens for one session.

    Args:
        sampling: resolved settings.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._processors = LogitsProcessorList()
        self._looks_back = sampling.repetition_penalty not in (None, 1.0)
        if self._looks_back:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty or 1)))
        if sampling.temperature:
            self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p is not None and sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p:
                self._processors.append(MinPLogitsWarper(sampling.min_p))

    def draw(self, window: Callable[[], list[int]], logits: Tensor) -> int:
        """The next token after a window of ids, from its logits (1, vocabulary).

        Only a repetition penalty asks for the window, which grows; without one a token costs the same at any length.
        """
        ids = torch.tensor([window() if self._looks_back else []], dtype=torch.long, device=logits.device)
        scores = self._processors(ids, logits.float())
        if not self.sampling.temperature:
            return int(scores.argmax(-1))
        # Drawn on the CPU so that a seed gives the same reply on every device.
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self._generator))
