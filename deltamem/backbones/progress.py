"""How long work reports itself: a callback, so that the library draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """A step of long work.

    Attributes:
        stage: what is being done, in words for a person.
        done: units finished.
        total: units in all, None where unknown.
        unit: "bytes" or "steps".
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "bytes"


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A report that goes nowhere."""
