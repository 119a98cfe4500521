"""Building the bank: episodes, openings of replies and ordinary talk, once through the frozen backbone."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import torch

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Question
from deltamem.episodes.many import make_episodes
from deltamem.episodes.numbers import is_number
from deltamem.episodes.openings import after_others, openings
from deltamem.episodes.passes import Passes
from deltamem.episodes.relation_data import is_of_relatives
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Split
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.collector import Collector

DIFFICULTY = Difficulty(
    facts=4,
    small_talk=2,
    long_values=0.5,
    corrections=0.2,
    unknown=0.25,
    noted=0.5,
    reworded=0.3,
    earlier=0.2,
    others=0.3,
    lists=0.15,
    natural=0.35,
    together=0.45,
    joined=0.35,
    mentions=0.5,
)
"""Of the episodes that places are taken from."""
TOLD_ALONE = 12
"""Facts in an episode that is told and not asked about."""
_FAMILIES, _SINGLES = 0.35, 0.35
"""Shares of episodes with relations of the families among them, most of which differ in a noun alone, and of those with
relations that are no family's, which are asked for in words of their own and answered in them."""
_LONG, _LONG_TALK = 0.03, 14
"""Share of episodes with up to so many turns of small talk."""
_BATCH, _BATCH_ON_GPU = 24, 192
_LENGTH = attrgetter("length")
"""What goes through the backbone together is of about one length."""
_EPISODE_BYTES = 2**20
"""What is kept of an episode takes, about, with 26 layers of smollm2-135m; openings and ordinary talk are on top."""


class Shares(NamedTuple):
    """How much of it is of some sorts.

    Attributes:
        numbers: share of episodes in which numbers are told as well.
        relatives: the same of what people close to one do and are; with none, no reply about them begins either.
        chats: share of windows that hold a chat in which what is asked was told, or other things were.
    """

    numbers: float = 0.2
    relatives: float = 0.0
    chats: float = 0.0


USUAL = Shares()


def build_bank(
    passes: Passes,
    people: SyntheticPeople,
    ordinary: Sequence[Question],
    episodes: int,
    seed: int = 0,
    report: Report | None = None,
    split: Split = "train",
    stock: int = 0,
    workers: int = 0,
    begun: float = 1.0,
    shares: Shares = USUAL,
    unseen: Sequence[Question] = (),
    texts: Sequence[Sequence[int]] = (),
) -> Bank:
    """Run everything through the frozen backbone once.

    Args:
        passes: runs it; the memory's corrections go to the last layer.
        people: makes what is told.
        ordinary: prompts with the frozen replies; each is read after other turns as well.
        episodes: how many are told; one takes about 1 MB with 26 layers of smollm2-135m.
        seed: of everything random.
        report: called with what is being done and the share done.
        split: of the episodes.
        stock: how many more are told alone, of `TOLD_ALONE` facts each.
        workers: processes that make the episodes; 0 for this one alone.
        begun: share that is read of how replies begin, besides all those about numbers and people close to one; there
            are so many ways that it takes an hour of a CPU's core. 0 for none, of those neither.
        shares: of what is told, and of windows.
        unseen: as `ordinary`, of sorts that an adapter was never shown.
        texts: token ids of text that is nobody's talk and is to be left alone as well.
    """
    say = report or (lambda _what, _share: None)
    if not shares.relatives:
        people = copy.copy(people)
        people.relatives = []
    rng = random.Random(f"places-{seed}")
    making, name = partial(say, "making up what is told and asked"), f"places-{seed}"
    chosen, told_alone = partial(difficulty, shares=shares), partial(alone, shares=shares)
    made = make_episodes(people, episodes, name, split, chosen, workers=workers, report=making)
    made.sort(key=_LENGTH)
    kept_on = _kept_on(passes.device, episodes + 2 * stock)
    collector = Collector(passes, torch.Generator().manual_seed(seed), kept_on)
    size = _BATCH if passes.device.type == "cpu" else _BATCH_ON_GPU
    for start in range(0, episodes, size):
        collector.add(made[start : start + size])
        say("reading what is told and asked", start / episodes)
    by_themselves = make_episodes(people, stock, f"{name}-stock", split, told_alone, TOLD_ALONE, workers)
    by_themselves.sort(key=_LENGTH)
    for start in range(0, stock, size):
        collector.put_by(by_themselves[start : start + size])
        say("reading what is told alone", start / stock)
    prompts = [*ordinary, *unseen]
    beginning = (
        sorted(_some_openings(openings(people, rng, prompts, shares.chats), begun, seed), key=_LENGTH) if begun else []
    )
    for start in range(0, len(beginning), size):
        collector.begin(beginning[start : start + size])
        say("reading how replies begin", start / len(beginning))
    # Once alone in its window and once after others: what came before is no reason to take it for one about oneself.
    talk = sorted([*prompts, *after_others(people, rng, prompts, shares.chats)], key=_LENGTH)
    new = {question.text for question in unseen}
    for start in range(0, len(talk), size):
        some = talk[start : start + size]
        collector.leave_alone(some, [question.text in new for question in some])
        say("reading ordinary talk", start / len(talk))
    for start in range(0, len(texts), size):
        collector.leave_text_alone(texts[start : start + size])
        say("reading ordinary text", start / len(texts))
    return collector.bank()


def _kept_on(device: torch.device, episodes: int) -> torch.device:
    """Where what is seen is kept: on a GPU only if all of it, and once more a part of it, has room there."""
    if device.type == "cuda" and 2 * episodes * _EPISODE_BYTES < torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def _some_openings(every: Sequence[Question], share: float, seed: int) -> list[Question]:
    """All about numbers and people close to one, and a share of the others."""
    rng = random.Random(f"begun-{seed}")
    later = (is_number(q.topic) or is_of_relatives(q.topic) for q in every)
    return [q for q, kept in zip(every, later, strict=True) if kept or rng.random() < share]


def difficulty(rng: random.Random, shares: Shares = USUAL) -> Difficulty:
    """Of one of the episodes."""
    kind = rng.random()
    talk = _LONG_TALK if rng.random() < _LONG else DIFFICULTY.small_talk
    singles = _FAMILIES <= kind < _FAMILIES + _SINGLES
    told = rng.random() < shares.numbers
    close = shares.relatives > 0 and rng.random() < shares.relatives
    return replace(
        DIFFICULTY,
        families=kind < _FAMILIES,
        singles=singles,
        numbers=told,
        relatives=close,
        small_talk=talk,
        one_chat=shares.chats,
    )


def alone(rng: random.Random, shares: Shares = USUAL) -> Difficulty:
    """Of one that is told and not asked about."""
    told = difficulty(rng, shares)
    return replace(told, small_talk=0, corrections=0.0, unknown=0.0, noted=0.0, earlier=0.0)
