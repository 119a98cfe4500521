"""What a step on places looks at, drawn where it is used or ahead of it in processes of their own.

On a GPU a step takes less time than drawing what it looks at. Drawing asks for numbers alone, not for what is hidden.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.processes import beside
from deltamem.training.places.bank import Bank
from deltamem.training.places.close import Close
from deltamem.training.places.draw import Drawing, Drawn
from deltamem.training.places.nearness import nearest
from deltamem.training.places.tail import Tail
from deltamem.training.recipe import Recipe

_LOOKED_AT = 128
"""Tokens that tell nothing, and of ordinary talk, in a step, or half as many as questions where that is more."""
_IDLE_BEGINS = 0.5
"""Share of those of ordinary talk that are where replies begin: there it shows whether one is asked about oneself."""
_UNKNOWN = 1.0
"""Chance, per fact told, that something never told is asked about: a fifth of what is asked then."""
_EASY_UNKNOWN, _EASY_FACTS = 0.25, 4
"""That chance, and most facts in a history, in the easy steps."""
_ROWS = 64
"""Histories in a step, at most, or a quarter of its questions where that is more; with more of one fact each, it was
the states that took the time."""
_APART = 56
"""Topics whose keys and queries are held apart in a step."""
_CLOSE = 5
"""One history of what is close to each other for so many questions."""
_FACTS = (1, 2, 4, 4, 8, 8, 16, 32)
"""How many are told in a history, each as often as it stands here."""


class Lot(NamedTuple):
    """What a step looks at.

    Attributes:
        drawn: histories, and places that are asked about them.
        others: numbers of tokens that tell nothing.
        openings: numbers of places where replies begin.
        idle: numbers of places in ordinary talk.
        close: histories of what is close to each other, and the places that ask for it; none where that has no weight.
        apart: numbers (2, n) of told tokens, and of the places that ask for the same.
        seed: of the noise.
    """

    drawn: Drawn
    close: Drawn
    others: Tensor
    openings: Tensor
    idle: Tensor
    apart: Tensor
    seed: int


class Lots:
    """Draws lots; it is small, and can be sent to another process.

    Args:
        bank: what there is.
        recipe: how much of it a step looks at.
        tail: of the backbone, which says what it expects; for what is close to each other, and not kept.
    """

    def __init__(self, bank: Bank, recipe: Recipe, tail: Tail | None = None) -> None:
        numbers, near = bank.numbers(), nearest(bank)
        self._recipe, self._drawing = recipe, Drawing(numbers, near)
        self._close = Close(self._drawing, bank, near, tail) if recipe.close_weight else None
        self._others, self._openings, self._idle = (
            range(hidden.shape[1]) for hidden in (numbers.other, numbers.openings, numbers.idle)
        )
        self._idle_begins: list[int] = bank.idle_begins.nonzero()[:, 0].tolist()

    def draw(self, step: int) -> Lot:
        """What one step looks at, by its number, from 0."""
        recipe = self._recipe
        rng = recipe.rng(step)
        easy = step < recipe.easy_steps
        most_facts = min(recipe.cached_facts, _EASY_FACTS) if easy else recipe.cached_facts
        facts = rng.choice([n for n in _FACTS if n <= most_facts])
        most = max(_ROWS, recipe.cached_questions // 4)
        drawn = self._drawing.histories(
            rng,
            facts,
            min(most, max(4, recipe.cached_questions // facts)),
            _EASY_UNKNOWN if easy else _UNKNOWN,
            recipe.cached_questions,
        )
        looked_at = max(_LOOKED_AT, recipe.cached_questions // 2)
        begins = round(_IDLE_BEGINS * looked_at) if self._idle_begins else 0
        idle = [*_some(rng, self._idle_begins, begins), *_some(rng, self._idle, looked_at - begins)]
        others = _some(rng, self._others, looked_at)
        openings = _some(rng, self._openings, recipe.cached_questions)
        apart = self._drawing.apart(rng, _APART if recipe.apart_weight else 0)
        if self._close is None:
            close = self._drawing.laid_out(rng, [], [])
        else:
            close = self._close.histories(rng, recipe.cached_questions // _CLOSE)
        return Lot(drawn, close, _numbers(others), _numbers(openings), _numbers(idle), apart, rng.getrandbits(40))


def _some(rng: random.Random, there: Sequence[int], count: int) -> list[int]:
    return rng.choices(there, k=count) if there else []


def _numbers(some: Sequence[int]) -> Tensor:
    return torch.tensor(some, dtype=torch.long)


class Ahead:
    """Lots of one step after another, drawn while the steps before are made. The processes end with it.

    Args:
        lots: draws them.
        first: the step that the first of them is for.
        workers: processes, each of which draws every so-manieth.
    """

    def __init__(self, lots: Lots, first: int, workers: int) -> None:
        context = beside()
        self._pipes: list[Connection] = []
        self._turn = 0
        for worker in range(workers):
            here, there = context.Pipe(duplex=False)
            args = (lots, first + worker, workers, there)
            context.Process(target=_draw_on, args=args, daemon=True).start()
            there.close()
            self._pipes.append(here)

    def next(self) -> Lot:
        """The next step's.

        Raises:
            EOFError: the process that draws it has died.
        """
        pipe = self._pipes[self._turn % len(self._pipes)]
        self._turn += 1
        *numbers, seed = pipe.recv()
        tensors = [torch.from_numpy(array) for array in numbers]
        count = len(fields(Drawn))
        others, openings, idle, apart = tensors[2 * count :]
        drawn, close = Drawn(*tensors[:count]), Drawn(*tensors[count : 2 * count])
        return Lot(drawn, close, others, openings, idle, apart, seed)


def _draw_on(lots: Lots, step: int, stride: int, pipe: Connection) -> None:
    """Draw for every so-manieth step until nobody takes it."""
    torch.set_num_threads(1)
    try:
        while True:
            lot = lots.draw(step)
            drawn = [getattr(some, field.name) for some in (lot.drawn, lot.close) for field in fields(Drawn)]
            tensors = [*drawn, lot.others, lot.openings, lot.idle, lot.apart]
            # Arrays are copied; tensors would be lent, a file descriptor each.
            pipe.send([*(tensor.numpy() for tensor in tensors), lot.seed])
            step += stride
    except (BrokenPipeError, KeyboardInterrupt):
        pass
