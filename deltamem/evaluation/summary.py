"""From predictions to figures: means with bootstrap intervals, by condition and slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_DRAWS = 1000


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over items."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = data[rng.integers(0, len(data), (_DRAWS, len(data)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(data.mean()), float(low), float(high)


def ratio(values: Sequence[float], base: Sequence[float], seed: int = 0) -> tuple[float, float, float] | None:
    """Ratio of two means over the same items with its 95 % paired bootstrap interval; None where the base is 0."""
    ours, theirs = (np.asarray(v, dtype=np.float64) for v in (values, base))
    if theirs.mean() == 0:
        return None
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(ours), (_DRAWS, len(ours)))
    below = theirs[index].mean(axis=1)
    drawn = ours[index].mean(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(ours.mean() / theirs.mean()), float(low), float(high)


def summarise(
    predictions: Sequence[Mapping[str, Any]], metrics: Sequence[str], slices: Sequence[Sequence[str]] = ()
) -> list[dict[str, Any]]:
    """Rows of figures.

    Args:
        predictions: lines of a predictions file (`Prediction.to_dict`).
        metrics: what to average.
        slices: combinations of labels; the whole comes first in any case.

    Returns:
        Per slice and condition: ``slice``, ``condition``, ``n``, and per metric mean, low and high; for the first
        metric also the ratio to `frozen` on the same items, where that was run.
    """
    rows: list[dict[str, Any]] = []
    for labels in ((), *slices):
        groups: dict[tuple[tuple[str, Any], ...], dict[str, dict[str, Mapping[str, Any]]]] = {}
        for p in predictions:
            if not all(label in p["labels"] for label in labels):
                continue
            key = tuple((label, p["labels"][label]) for label in labels)
            groups.setdefault(key, {}).setdefault(p["condition"], {})[p["id"]] = p
        for key in sorted(groups, key=lambda k: [(isinstance(v, str), v) for _, v in k]):
            frozen = groups[key].get("frozen", {})
            for condition, asked in groups[key].items():
                rows.append(_row(dict(key), condition, asked, frozen, metrics))
    return rows


def _row(
    labels: dict[str, Any],
    condition: str,
    asked: Mapping[str, Mapping[str, Any]],
    frozen: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {"slice": labels, "condition": condition, "n": len(asked)}
    for metric in metrics:
        mean, low, high = interval([p["scores"][metric] for p in asked.values()])
        row[metric] = {"mean": mean, "low": low, "high": high}
    both = [i for i in asked if i in frozen]
    if condition != "frozen" and both:
        found = ratio([asked[i]["scores"][metrics[0]] for i in both], [frozen[i]["scores"][metrics[0]] for i in both])
        if found is not None:
            row["over_frozen"] = dict(zip(("mean", "low", "high"), found, strict=True))
    return row
