"""In which directions of hidden states keys and queries are fitted: those in which told values, and the places where
they are asked for, agree most on what a fact is about (canonical correlation analysis over names).

Layers take different ones. Those in which all that is told agrees most are of what sort a fact is (of a person, of an
animal), and much the same in every layer: with them alone a mother is found for a father. So every second layer takes
those in which names of one sort differ from each other; of the rest, one takes what comes after the first of all, and
one those in which the tokens of a value differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deltamem.episodes.sorts import sort_of
from deltamem.training.places.names import Named

_RIDGE = 0.05
"""Added to variances, relative to their mean."""
_SORT = 4
"""Names of a sort there must be for what they have in common to be left out."""


class Share(NamedTuple):
    """Which directions a layer takes.

    Attributes:
        apart: what is told apart: names of all sorts, those that begin a value within their sort, or those of one
            value's tokens.
        after: directions that come before them, as a multiple of how many a layer takes.
    """

    apart: Literal["all", "sort", "value"]
    after: int = 0


SHARES = (Share("sort"), Share("all", 1), Share("sort", 1), Share("value"))
"""Of one layer after another, and from the first again."""


@dataclass(frozen=True)
class Groups:
    """Names that are told apart within groups: what those of one have in common says nothing.

    Attributes:
        numbers: (names,), of each one's group; -1 for names that are left out.
        fewest: names a group must have; in smaller ones nothing is taken for common.
    """

    numbers: Tensor
    fewest: int

    @staticmethod
    def of(keys: Iterable[Hashable], fewest: int) -> Groups:
        """Of what each name's group is called; None for names that are left out."""
        seen: dict[Hashable, int] = {}
        numbers = [-1 if key is None else seen.setdefault(key, len(seen)) for key in keys]
        return Groups(torch.tensor(numbers), fewest)

    def apart(self, means: Tensor, weight: Tensor) -> Tensor:
        """Names' means (names, n) without what their groups have in common, by weight (names,)."""
        number = self.numbers.to(means.device).clamp_min(0)
        groups = int(number.max()) + 1
        many = torch.bincount(number[weight > 0], minlength=groups)
        total = weight.new_zeros(groups).index_add_(0, number, weight).clamp_min(1e-6)
        common = means.new_zeros(groups, means.shape[1]).index_add_(0, number, means * weight[:, None])
        return means - (common / total[:, None] * (many >= self.fewest)[:, None])[number]


class Directions:
    """Of all layers.

    Args:
        named: what is told and asked for.
        shares: of one layer after another.
    """

    def __init__(self, named: Named, shares: tuple[Share, ...] = SHARES) -> None:
        self._named, self._shares = named, shares
        firsts = ((sort_of(topic.relation) if before is None else None) for topic, before in named.names)
        of_topics = (topic for topic, _ in named.names)
        self._groups = {"all": None, "sort": Groups.of(firsts, _SORT), "value": Groups.of(of_topics, 1)}

    def fitted(self, layer: int, told: Tensor, asked: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Directions for keys and for queries, (count, hidden size) each.

        Args:
            layer: its number, from 0.
            told: (n, hidden size), what keys of the told tokens are made of.
            asked: (m, hidden size), of the places.
            count: how many directions.
        """
        share = self._shares[layer % len(self._shares)]
        # Where a state takes most directions there are, there are none after them.
        first = share.after * count if (share.after + 1) * count <= told.shape[1] // 2 else 0
        named = self._named
        return agreeing(told, named.told_about, asked, named.asked_about, count, first, self._groups[share.apart])


def agreeing(
    x: Tensor,
    x_about: Tensor,
    y: Tensor,
    y_about: Tensor,
    count: int,
    first: int = 0,
    groups: Groups | None = None,
) -> tuple[Tensor, Tensor]:
    """Directions in which x (n, hidden) and y (m, hidden) agree most among those that are about the same.

    Args:
        x: hidden states.
        x_about: (n,), a number for what each is about.
        y: hidden states.
        y_about: (m,).
        count: how many directions.
        first: the first of them, where 0 is the one in which they agree most.
        groups: of what they are about, within which those are to be told apart; None for all as one.

    Returns:
        (count, hidden) for x and for y; zeros where there are no more.
    """
    classes = int(max(x_about.max(), y_about.max())) + 1 if groups is None else len(groups.numbers)
    x_white, y_white = _whitening(x), _whitening(y)
    x_mean, x_many = _means((x - x.mean(0)) @ x_white.T, x_about, classes)
    y_mean, y_many = _means((y - y.mean(0)) @ y_white.T, y_about, classes)
    weight = (x_many * y_many).sqrt()
    if groups is not None:
        weight = weight * (groups.numbers >= 0).to(weight)
        x_mean, y_mean = (groups.apart(mean, weight) for mean in (x_mean, y_mean))
    crossing = (x_mean * weight[:, None]).T @ y_mean / weight.sum().clamp_min(1e-6)
    left, strength, right = torch.linalg.svd(crossing)
    last = max(first, min(first + count, int((strength > 0).sum())))
    pad = x.new_zeros(count - (last - first), x.shape[1])
    return torch.cat([left.T[first:last] @ x_white, pad]), torch.cat([right[first:last] @ y_white, pad])


def _whitening(x: Tensor) -> Tensor:
    """What makes x uncorrelated and of unit variance, and takes its mean to nothing: projections have no bias."""
    mean = x.mean(0)
    spread = (x - mean).T @ (x - mean) / len(x)
    spread += _RIDGE * spread.diagonal().mean() * torch.eye(len(spread), device=x.device)
    sizes, vectors = torch.linalg.eigh(spread)
    white = vectors / sizes.sqrt() @ vectors.T
    constant = torch.nn.functional.normalize(white @ mean, dim=0)
    centred: Tensor = white - torch.outer(constant, constant @ white)
    return centred


def _means(x: Tensor, about: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    about = about.to(x.device)
    many = torch.bincount(about, minlength=classes).float()
    return x.new_zeros(classes, x.shape[1]).index_add_(0, about, x) / many.clamp_min(1)[:, None], many
