"""A starting point from which recall is a short way off.

From random weights the gradient of recall is close to nothing: a value must be written, under a key that its
question finds, through layers that pass it on, before any of these pays. Each part can be had without the others.
Keys, queries and gates are fitted in `addressing`; here values are made to be carried by copying: W_v of layer l
takes eight directions of a token's identity (right singular vectors 8l ... 8l+7 of the centred embedding) and D_o
gives them back (DESIGN, section 7).
"""

from __future__ import annotations

from typing import Any

import torch

from deltamem.layer import DeltaLayer
from deltamem.memory import DeltaMemory


def copy_directions(memory: DeltaMemory, gain: float = 0.3) -> None:
    """Set W_v and D_o so that a layer writes and gives back its own directions of a token's identity."""
    model: Any = memory.model
    embedding = model.get_input_embeddings().weight.detach().float()
    _, _, directions = torch.linalg.svd(embedding - embedding.mean(0), full_matrices=False)
    for i, layer in enumerate(delta_layers(memory)):
        width = layer.memory_v_proj.shape[0]
        rows = torch.arange(i * width, (i + 1) * width) % len(directions)
        with torch.no_grad():
            layer.memory_v_proj.copy_(directions[rows])
            if layer.corrects("o"):
                layer.delta_o_proj.copy_(directions[rows].T * gain)


def delta_layers(memory: DeltaMemory) -> list[DeltaLayer]:
    """The adapter's layers, in order."""
    return [layer for layer in memory.adapter if isinstance(layer, DeltaLayer)]
