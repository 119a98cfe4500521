"""What is in a state: figures and pictures. Needs numpy; no torch, no backbone."""

from __future__ import annotations

from deltamem.inspection.heads import HeadSummary, Matrices, change_between, effective_rank, matrix_rows, summarize
from deltamem.inspection.overview import Moment, Overview, overview

__all__ = [
    "HeadSummary",
    "Matrices",
    "Moment",
    "Overview",
    "change_between",
    "effective_rank",
    "matrix_rows",
    "overview",
    "summarize",
]
