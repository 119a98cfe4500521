"""The bank: told values, and places where something is to be said, as the frozen backbone sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

_HIDDEN = ("told", "before", "other", "places", "openings", "idle")
_ROWS = (
    "told_ids",
    "other_residuals",
    "residuals",
    "targets",
    "values",
    "opening_residuals",
    "opening_targets",
    "opening_begins",
    "opening_numbers",
    "opening_relatives",
    "opening_starts",
    "opening_alone",
    "idle_residuals",
    "idle_begins",
    "idle_unseen",
)
"""A bank's tensors, (layers, n, hidden size) and (n, ...)."""

Report = Callable[[str, float], None]


class Topic(NamedTuple):
    """What a fact is about: a relation, and whose it is ("" for the user's own)."""

    relation: str
    owner: str


class Words(NamedTuple):
    """Word pieces as they look where a value is told, for values that no fact has.

    Attributes:
        hidden: (layers, n, hidden size), as it enters the adapted layers.
        ids: (n,), which pieces those are.
        later: (n,), true where it goes on a value, false where it begins one.
    """

    hidden: Tensor
    ids: Tensor
    later: Tensor


@dataclass
class Fact:
    """Something told and how it is asked for.

    Attributes:
        topic: what it is about.
        told: numbers of the bank's `told` tokens, in the order they are written; none where nothing was told.
        early: the value was told before anything that says what it is ("Rufus is my dog."), so that nothing at its own
            tokens, which are what is written, hangs on the topic.
        noted: it is asked for in the reply to the statement, which stands before it.
        asked: numbers of the bank's places at which a reply about it is to go on; none where it was told alone.
        corrects: it was told to correct something told before ("Actually, my dog's name is Rufus.").
        seen: numbers of the bank's `told` tokens that stand in the window it is asked in as well, its own among them
            where it was told there.
    """

    topic: Topic
    told: list[int] = field(default_factory=list)
    early: bool = False
    noted: bool = False
    asked: list[int] = field(default_factory=list)
    corrects: bool = False
    seen: list[int] = field(default_factory=list)

    @property
    def in_window(self) -> bool:
        """Whether it was told in the window it is asked in."""
        return not set(self.told).isdisjoint(self.seen)

    def numbered_anew(self, told: Callable[[int], int | None], asked: Callable[[int], int]) -> Fact:
        """The same where tokens and places have other numbers; what was seen may be gone."""
        seen = [new for t in self.seen if (new := told(t)) is not None]
        own = [new for t in self.told if (new := told(t)) is not None]
        return replace(self, told=own, asked=[asked(p) for p in self.asked], seen=seen)


@dataclass(frozen=True)
class Bank:
    """What steps draw from; hidden states are (layers, n, hidden size), as they enter the adapted layers.

    Attributes:
        facts: told and asked about.
        unknown: asked about, and never told.
        told: tokens of values.
        before: the token written right before each of `told`, zeros where there is none, and what that passes on, if
            it does (`DeltaMemConfig.fading`); (layers, 0, hidden size) where keys are made of a token alone.
        told_ids: (n,), which tokens those are.
        other: tokens that were written and tell nothing, after which the frozen backbone is to be left alone as well.
        other_residuals: their residuals, as those of `places`.
        places: tokens after which a reply goes on.
        residuals: (n, hidden size) of `places`, in the last layer after its attention.
        targets: (n,) of `places`, the token that is to come.
        values: (n,) of `places`, true where that is part of what had to be remembered.
        openings: tokens after which a reply goes on that has not come to its value yet; in what words it is begun hangs
            on what it replies to alone, so these are of every question and every statement there is.
        opening_residuals: their residuals, as those of `places`.
        opening_targets: (n,) of `openings`, the token that is to come.
        opening_begins: (n,) of `openings`, true for the first few of a reply.
        opening_numbers: (n,) of `openings`, true for those of a reply about a number.
        opening_relatives: (n,) of `openings`, true for those of a reply about somebody close to one.
        opening_starts: (n,) of `openings`, true where a sentence of a reply begins.
        opening_alone: (n,) of `openings`, true for those of a reply about what one tells of oneself, of a relation that
            stands alone: neither a number nor one of a family, whose replies differ in a noun.
        idle: tokens of ordinary talk after which the frozen backbone is to be left alone.
        idle_residuals: their residuals.
        idle_begins: (n,) of `idle`, true for the first few of a reply.
        idle_unseen: (n,) of `idle`, true for what an adapter that knows words alone was never shown: talk with numbers
            in it, and text that is nobody's talk.
        candidates: token ids among which a target is told apart.
        unsaid: the token that comes where a value is not known.
        stock: told and not asked about. What asks for a fact says nothing of its value, so they can be asked for at the
            places of others.
        words: told in place of values of facts: what is around a value says nothing of it.
    """

    facts: Sequence[Fact]
    unknown: Sequence[Fact]
    told: Tensor
    before: Tensor
    told_ids: Tensor
    other: Tensor
    other_residuals: Tensor
    places: Tensor
    residuals: Tensor
    targets: Tensor
    values: Tensor
    openings: Tensor
    opening_residuals: Tensor
    opening_targets: Tensor
    opening_begins: Tensor
    opening_numbers: Tensor
    opening_relatives: Tensor
    opening_starts: Tensor
    opening_alone: Tensor
    idle: Tensor
    idle_residuals: Tensor
    idle_begins: Tensor
    idle_unseen: Tensor
    candidates: Tensor
    unsaid: int
    stock: Sequence[Fact] = ()
    words: Words | None = None

    def on(self, device: torch.device) -> Bank:
        """With what is hidden on a device, where it is looked up without being copied; numbers stay on the CPU."""
        names = [*_HIDDEN, *(name for name in _ROWS if name.endswith("residuals"))]
        moved = {name: getattr(self, name).to(device) for name in names}
        words = self.words._replace(hidden=self.words.hidden.to(device)) if self.words is not None else None
        return replace(self, **moved, words=words)

    def numbers(self) -> Bank:
        """With nothing of what is hidden but how much of it there is."""
        none = {name: getattr(self, name)[:0].cpu().clone() for name in _HIDDEN}
        none |= {name: getattr(self, name)[:, :0].cpu().clone() for name in _ROWS if name.endswith("residuals")}
        words = self.words._replace(hidden=self.words.hidden[:0].cpu().clone()) if self.words is not None else None
        return replace(self, **none, words=words)

    @property
    def bytes(self) -> int:
        """What is hidden takes."""
        tensors = [getattr(self, name) for name in _HIDDEN] + ([self.words.hidden] if self.words is not None else [])
        return sum(t.nbytes for t in tensors)

    def said(self, numbers: Tensor) -> Tensor:
        """Hidden states (layers, n, hidden size) of told tokens, after which the numbers of `words` go on."""
        told = self.told.shape[1]
        if self.words is None:
            return self.told[:, numbers]
        own = (numbers < told).to(self.told.device)[:, None]
        words = self.words.hidden[:, (numbers - told).clamp_min(0)]
        return torch.where(own, self.told[:, numbers.clamp_max(told - 1)], words)

    def after_value(self, fact: Fact) -> list[int]:
        """Places of replies about a fact that come right after a token of what had to be remembered."""
        return [p for p in fact.asked if p - 1 in fact.asked and self.values[p - 1]]


def marked(like: Tensor, facts: Sequence[Fact], what: str) -> Tensor:
    """Which tokens ("told"), or places ("asked"), are of the facts, (n,) as `like` is."""
    marks = torch.zeros(len(like), dtype=torch.bool)
    marks[[number for fact in facts for number in getattr(fact, what)]] = True
    return marks


def with_words(bank: Bank, words: Words) -> Bank:
    """The bank with words told in place of those of its values, which are to be told apart from each other as well."""
    near = words._replace(hidden=words.hidden.to(bank.told.device))
    return replace(bank, words=near, candidates=torch.unique(torch.cat([bank.candidates, words.ids])))


def part_of(bank: Bank, facts: Sequence[Fact]) -> Bank:
    """Some of a bank's facts, with what was told and asked of them alone, on the CPU."""
    told = sorted({t for fact in facts for t in fact.told})
    asked = sorted({p for fact in facts for p in fact.asked})
    tokens, places = ({old: new for new, old in enumerate(kept)} for kept in (told, asked))
    kept = {"told": told, "places": asked} | ({"before": told} if bank.before.shape[1] else {})
    hidden = {name: getattr(bank, name)[:, kept.get(name, [])].cpu() for name in _HIDDEN}
    rows: dict[str, list[int]] = {"told_ids": told, "residuals": asked, "targets": asked, "values": asked}
    return replace(
        bank,
        facts=[fact.numbered_anew(tokens.get, places.__getitem__) for fact in facts],
        unknown=[],
        stock=(),
        words=None,
        **hidden,
        **{name: getattr(bank, name)[rows.get(name, [])].cpu() for name in _ROWS},
    )


def joined(banks: Sequence[Bank]) -> Bank:
    """Several banks as one."""
    tensors = {
        name: torch.cat([getattr(bank, name) for bank in banks], dim=dim)
        for names, dim in ((_HIDDEN, 1), (_ROWS, 0))
        for name in names
    }
    facts: list[Fact] = []
    unknown: list[Fact] = []
    stock: list[Fact] = []
    told = asked = 0
    for bank in banks:
        for own, into in ((bank.facts, facts), (bank.unknown, unknown), (bank.stock, stock)):
            into += [fact.numbered_anew(told.__add__, asked.__add__) for fact in own]
        told, asked = told + len(bank.told_ids), asked + len(bank.targets)
    candidates = torch.unique(torch.cat([bank.candidates for bank in banks]))
    common: dict[str, Any] = {"candidates": candidates, "unsaid": banks[0].unsaid, "stock": stock, **tensors}
    return Bank(facts=facts, unknown=unknown, **common)
