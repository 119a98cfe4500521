"""The processes that train together, through accelerate; one alone where none were launched."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Team:
    """One process among those of `accelerate launch`.

    Every process draws the same global batch and works on its share; sums over processes make the step the one that
    a single process would have taken.

    Args:
        cpu: train on the CPU even where there is a GPU.
    """

    def __init__(self, cpu: bool = False) -> None:
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=cpu)
            # Left to the interpreter's end, the group's threads are torn down while they run: now and then a process
            # that had done all its work was aborted there.
            atexit.register(self._accelerator.end_training)

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes) if self._accelerator is not None else 1

    @property
    def rank(self) -> int:
        """Number of this one."""
        return int(self._accelerator.process_index) if self._accelerator is not None else 0

    @property
    def device(self) -> str | None:
        """Where this process is to work; None leaves the choice."""
        return str(self._accelerator.device) if self._accelerator is not None else None

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of something all processes have."""
        return list(items[self.rank :: self.size])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return tensor if self._accelerator is None else self._accelerator.reduce(tensor, reduction="sum")

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over processes."""
        if self._accelerator is None:
            return
        for parameter in parameters:
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self.sum(grad)

    def gather(self, value: T) -> list[T]:
        """What every process has, in the order of their ranks."""
        if self._accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        found: list[T] = gather_object([value])
        return found

    def wait(self) -> None:
        """Go on when all are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
