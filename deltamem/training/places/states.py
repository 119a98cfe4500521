"""What drawn histories leave behind, where nothing that writes them is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.training.places.bank import Bank
from deltamem.training.places.draw import Drawn
from deltamem.training.places.stacked import Stacked


@torch.no_grad()
def states_of(layers: Stacked, bank: Bank, drawn: Drawn) -> Tensor:
    """States (layers, B, H, r, r) on the device of the layers' weights; no gradient reaches those.

    Args:
        layers: write them.
        bank: what `drawn` was drawn from.
        drawn: histories.
    """

    def of(hidden: Tensor) -> Tensor:
        found: Tensor = hidden.to(layers.device).float().unflatten(1, drawn.told.shape)
        return found

    told = drawn.told.flatten()
    before = of(bank.before[:, told]) if layers.config.keys == "pair" else None
    said = of(bank.said(drawn.said.flatten()))
    return layers.written(of(bank.told[:, told]), before, said, drawn.valid.to(layers.device))[0]
