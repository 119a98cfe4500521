"""A starting point for values: what is written says which token it was, what is read back makes that token likely.

The identity of a token is coded in as many numbers as all layers together carry: its embedding, centred, whitened, and
turned at random so that every number says as much as every other. Each layer has its own few of them.

* **W_v** is a ridge regression from the hidden states of the layer to its part of the code;
* **D_o** gives the code back along the direct path, through the residual stream to the output embedding: the sum over
  layers is then a matched filter. What the layers in between make of it is left to training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory


def delta_layers(memory: DeltaMemory) -> list[DeltaLayer]:
    """The adapter's layers, in order."""
    return [layer for layer in memory.adapter if isinstance(layer, DeltaLayer)]


class TokenCode:
    """A code of every token of the vocabulary, (vocabulary, layers, width), of unit variance.

    Args:
        memory: for the backbone and the sizes.
        seed: of the turn.
    """

    def __init__(self, memory: DeltaMemory, seed: int = 0) -> None:
        model: Any = memory.model
        self._model = model
        embedding = model.get_output_embeddings().weight.detach().cpu().float()
        self._centred = embedding - embedding.mean(0)
        layers = delta_layers(memory)
        self.layers, self.width = len(layers), layers[0].memory_v_proj.shape[0]
        # Directions in which tokens differ most: the rest is noise to a hidden state.
        values, vectors = torch.linalg.eigh(self._centred.T @ self._centred / len(self._centred))
        count = min(self.layers * self.width, len(values))
        generator = torch.Generator().manual_seed(seed)
        self._whiten = vectors[:, -count:] / values[-count:].clamp_min(1e-8).sqrt()  # (hidden, count)
        turns = []
        for _ in range(-(-self.layers * self.width // count)):
            turn, _ = torch.linalg.qr(torch.randn(count, count, generator=generator))
            turns.append(turn)
        self._turn = torch.cat(turns, dim=1)[:, : self.layers * self.width]

    def of(self, ids: Tensor) -> Tensor:
        """(N, layers, width) for token ids (N,)."""
        code: Tensor = (self._centred[ids] @ self._whiten @ self._turn).unflatten(-1, (self.layers, self.width))
        return code

    def directions(self) -> Tensor:
        """(layers, hidden, width): what added to the last residual stream raises the logits of the coded token."""
        norm = getattr(getattr(self._model, "base_model", self._model), "norm", None)
        scale = getattr(norm, "weight", None)
        out: Tensor = (self._whiten @ self._turn).unflatten(-1, (self.layers, self.width)).permute(1, 0, 2)
        if scale is not None and scale.shape == out.shape[1:2]:
            scale = scale.detach().cpu().float()
            out = out / torch.where(scale.abs() > 0.05 * scale.abs().mean(), scale, scale.abs().mean())[None, :, None]
        unit: Tensor = out / out.norm(dim=1, keepdim=True)
        return unit


def fit_values(memory: DeltaMemory, hidden: Tensor, ids: Tensor, ridge: float = 0.1, gain: float = 7.5) -> list[float]:
    """Set W_v and D_o.

    Args:
        memory: whose adapter is changed.
        hidden: (layers, N, hidden), what enters the layers at N tokens.
        ids: (N,), those tokens.
        ridge: penalty, relative to the mean variance of the hidden states.
        gain: length of the columns of D_o. With a fifteenth of this nothing was learnt for 85 steps: what is read
            must be heard beside a residual stream of norm 100 and more.

    Returns:
        Per layer, the share of the code's variance that the regression explains on every fifth token, left out of it.
    """
    code = TokenCode(memory)
    wanted, directions = code.of(ids), code.directions()
    kept = torch.arange(len(ids)) % 5 > 0
    explained = []
    for i, layer in enumerate(delta_layers(memory)):
        weights, share = _regress(hidden[i], wanted[:, i], kept, ridge)
        explained.append(share)
        with torch.no_grad():
            layer.memory_v_proj.copy_(weights)
            if layer.corrects("o"):
                layer.delta_o_proj.copy_(directions[i] * gain)
    return explained


def _regress(x: Tensor, y: Tensor, kept: Tensor, ridge: float) -> tuple[Tensor, float]:
    def solve(rows: Tensor | Sequence[int] | slice) -> Tensor:
        a, b = x[rows], y[rows]
        square = a.T @ a
        penalty = ridge * square.diagonal().mean() * torch.eye(len(square))
        weights: Tensor = torch.linalg.solve(square + penalty, a.T @ b)
        return weights

    rest = ~kept
    error = (x[rest] @ solve(kept) - y[rest]).square().mean()
    return solve(slice(None)).T, float(1 - error / y[rest].square().mean())
