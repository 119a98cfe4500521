"""Making figures and writing them to files. matplotlib is an extra, and is asked for where a picture is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltamem.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Find out before long work, not after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("a picture", "eval") from None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the ending of the path says the format.

    Raises:
        DataError: the file can't be written, or there is no such format.
    """
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise DataError(f"can't draw to {path}: {error}") from None
