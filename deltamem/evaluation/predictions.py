"""Predictions on disk: one JSON object a line, after a line that says what was run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltamem.errors import DataError


class PredictionsFile:
    """A file that a later run can go on with.

    Args:
        path: where it is.
        settings: what the run is; a file with other settings is refused.

    Raises:
        DataError: the file is something else, or belongs to another run.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []
        if not path.exists() or path.stat().st_size == 0:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"settings": settings}, ensure_ascii=False) + "\n", "utf-8")
            except OSError as error:
                raise DataError(f"can't write {path}: {error.strerror}") from None
            return
        try:
            text = path.read_text("utf-8")
            # A kill can leave half a line at the end; that question is asked again.
            whole = text[: text.rfind("\n") + 1]
            first, *rest = (json.loads(line) for line in whole.splitlines())
            before = first["settings"]
            self.lines = [line for line in rest if {"condition", "id", "scores", "labels"} <= line.keys()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path} is no predictions file; name another with --predictions") from None
        if before != settings:
            other = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
            raise DataError(f"{path} is of another run ({', '.join(other)} differ); name another file")
        if whole != text:
            path.write_text(whole, "utf-8")

    @property
    def done(self) -> set[tuple[str, str]]:
        """(condition, item id) of all lines."""
        return {(line["condition"], line["id"]) for line in self.lines}

    def add(self, line: dict[str, Any]) -> None:
        """Append a prediction."""
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
