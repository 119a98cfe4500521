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
    return layers.left_by(products_of(layers, bank, drawn), drawn.valid.to(layers.device))


@torch.no_grad()
def products_of(layers: Stacked, bank: Bank, drawn: Drawn) -> Tensor:
    """`Stacked.told_products` of drawn histories, (layers, B, T, n); see `states_of`."""

    told = drawn.told.flatten()

    def of(hidden: Tensor) -> Tensor:
        found: Tensor = hidden.to(layers.device).float()
        return found

    before = of(bank.before[:, told]) if layers.config.keys == "pair" else None
    products = layers.told_products(of(bank.told[:, told]), before, of(bank.said(drawn.said.flatten())))
    shaped: Tensor = products.unflatten(1, drawn.told.shape)
    return shaped
