"""Two states made into one, so that as much as can be is read out of it of either."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltamem.inspection import Matrices


def merged_matrices(a: Matrices, b: Matrices, weight: float = 0.5) -> tuple[Matrices, float]:
    """min(1, 2 (1 - w)) A (I - min(1, 2 w) P) + min(1, 2 w) B, matrix by matrix.

    P projects on the key directions that B has written, in the measure in which it uses them: what A holds there would
    be read together with what B holds. With w = 0 that is A, with w = 1 it is B;
    at a half both are read at full strength.

    Args:
        a: the one.
        b: the other.
        weight: w.

    Returns:
        The merged state, and the share of A's norm that was kept.
    """
    ours, theirs = min(1.0, 2 * (1 - weight)), min(1.0, 2 * weight)
    wide = a.astype(np.float64)
    kept = ours * (wide - theirs * wide @ _used(b.astype(np.float64)))
    norm = float(np.linalg.norm(wide))
    return (kept + theirs * b).astype(np.float32), float(np.linalg.norm(kept)) / norm if norm else 1.0


def _used(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Projections (..., r, r) on the key directions that state matrices use, each by its share of the largest one."""
    _, values, rows = np.linalg.svd(matrices)
    largest = np.maximum(values[..., :1], 1e-30)
    used: NDArray[np.float64] = np.swapaxes(rows, -1, -2) @ ((values / largest)[..., None] * rows)
    return used
