"""What a run leaves to look at: `metrics.jsonl`, and TensorBoard's files where asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltamem.errors import MissingExtraError

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """A line a step.

    Args:
        directory: of the run.
        step: the last step of its checkpoint; lines after it are of steps that will be done again, and are dropped.
        tensorboard: write TensorBoard's files as well.

    Raises:
        MissingExtraError: TensorBoard is wanted and not installed.
    """

    def __init__(self, directory: Path, step: int, tensorboard: bool = False) -> None:
        self._path = directory / METRICS_FILE
        kept = [line for line in read_metrics(directory) if line["step"] <= step]
        beside = self._path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        beside.replace(self._path)
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtraError("--tensorboard", "tensorboard") from None
            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def add(self, line: dict[str, Any]) -> None:
        """Append a step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is None:
            return
        numbers = {k: v for k, v in line.items() if isinstance(v, float)} | line.get("parts", {})
        for facts, row in line.get("recall", {}).items():
            numbers[f"recall/{facts} facts"] = row["named"]
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run, without one that was cut off."""
    lines = []
    path = directory / METRICS_FILE
    for text in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
