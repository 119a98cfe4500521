"""What the backbone does after the last layer's attention: an MLP, a norm, the output layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deltamem.errors import DataError
from deltamem.memory import DeltaMemory


class Tail:
    """The rest of the backbone, from the residual stream after the last attention to logits.

    Args:
        memory: its last adapted layer is the backbone's last.

    Raises:
        DataError: it is not, or the backbone's layers are not made of an attention and an MLP, one after the other.
    """

    def __init__(self, memory: DeltaMemory) -> None:
        model: Any = memory.model
        self._model = model
        self._norm: Any = getattr(model.base_model, "norm", None)
        self._block: Any = memory.last_block
        parts = [name for name in ("post_attention_layernorm", "mlp") if hasattr(self._block, name)]
        plain = len(parts) == 2 and not hasattr(self._block, "pre_feedforward_layernorm") and self._norm is not None
        if not plain or memory.layer_indices[-1] != model.config.get_text_config().num_hidden_layers - 1:
            raise DataError(
                "steps on places need a backbone like Llama's, SmolLM's or Qwen's, adapted up to its last layer; "
                "use --preset deltamem"
            )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self._model.get_output_embeddings().weight.device
        return device

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self._model.get_output_embeddings().weight)

    def directions(self, ids: Tensor) -> Tensor:
        """Where in the residual stream tokens lie, (n, hidden size): what is added there makes them likelier."""
        weight: Tensor = self._model.get_output_embeddings().weight
        return weight[ids.to(weight.device)].float()

    @contextmanager
    def record(self, places: Tensor, into: list[Tensor]) -> Iterator[None]:
        """Append the residuals at some places (B, T) of a call: (places, hidden size)."""

        def keep(_module: Any, args: tuple[Tensor, ...]) -> None:
            into.append(args[0].detach()[places.to(args[0].device)].cpu())

        handle = self._block.post_attention_layernorm.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, residuals: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of `tokens`, or of all, (N, tokens), from residuals (N, hidden size)."""
        weight: Tensor = self._model.get_output_embeddings().weight
        h = residuals.to(weight.dtype)
        h = h + self._block.mlp(self._block.post_attention_layernorm(h))
        h = self._norm(h)
        logits: Tensor = h @ (weight if tokens is None else weight[tokens]).T
        return logits.float() if torch.is_grad_enabled() else logits
