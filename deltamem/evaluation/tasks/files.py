"""Reading the files of published tasks, with errors that name the file and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltamem.errors import DataError, MissingExtraError


def read_json(path: Path) -> Any:
    """A JSON file, or JSON lines as a list.

    Raises:
        DataError: it can't be read or isn't JSON.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {path}: {error}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                raise DataError(f"{path}, line {number}: not JSON") from None
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON, JSON lines or parquet file, or of all such files in a folder.

    Raises:
        DataError: nothing can be read there.
        MissingExtraError: a parquet file without pyarrow.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".json", ".jsonl", ".parquet"))
        if not files:
            raise DataError(f"{path} holds no .json, .jsonl or .parquet files")
        return [row for file in files for row in read_rows(file)]
    if path.suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise MissingExtraError("reading parquet", "parquet") from None
        try:
            rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        except (OSError, ArrowException) as error:
            raise DataError(f"can't read {path}: {str(error).splitlines()[0]}") from None
        return rows
    found = read_json(path)
    if isinstance(found, dict):
        found = found.get("data", [found])
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(f"{path}: expected a list of objects")
    return found


def expect(condition: bool, path: Path, what: str) -> None:
    """Refuse a file that is something else.

    Raises:
        DataError: the condition is false.
    """
    if not condition:
        raise DataError(f"{path} does not look like {what}")
