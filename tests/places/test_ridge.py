"""Ridge regression on what all layers see, against the normal equations in float64."""

from __future__ import annotations

import pytest
import torch

from deltamem.training.places import ridge
from deltamem.training.places.ridge import regress


@pytest.mark.parametrize("widest", [20_000, 70])
def test_it_solves_the_normal_equations(monkeypatch: pytest.MonkeyPatch, widest: int) -> None:
    """With fewer places than numbers, of which there are too many, in its other form; a few places at a time."""
    monkeypatch.setattr(ridge, "_WIDEST", widest)
    monkeypatch.setattr(ridge, "_AT_A_TIME", 32)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(150, 90, generator=generator), torch.randn(150, 4, generator=generator)
    x[:, 3] += 2
    counts = torch.rand(150, generator=generator) + 0.1
    found = regress(x.__getitem__, y.__getitem__, counts, 0.05, torch.Generator().manual_seed(1), "")
    if widest < 90:
        taken = torch.randperm(150, generator=torch.Generator().manual_seed(1))[:widest]
        x, y, counts = x[taken], y[taken], counts[taken]
    x, y, weight = x.double(), y.double(), counts.double()[:, None]
    seen, wanted = ((weight * of).sum(0) / weight.sum() for of in (x, y))
    square = (weight * (x - seen)).T @ (x - seen)
    square += 0.05 * square.diagonal().mean() * torch.eye(90)
    weights = torch.linalg.solve(square, (weight * (x - seen)).T @ (y - wanted))
    torch.testing.assert_close(found.seen.double(), seen, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.wanted.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.weights.double(), weights, atol=1e-4, rtol=1e-3)
