"""Recall during and after a run: a small share of what `deltamem eval recall` asks."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem.episodes.passes import Passes
from deltamem.evaluation.conditions import Condition
from deltamem.evaluation.run import EvalOptions, evaluate
from deltamem.evaluation.summary import summarise
from deltamem.evaluation.tasks.recall import recall_task


def heldout_recall(
    passes: Passes,
    questions: int,
    facts: Sequence[int] = (1, 4),
    conditions: Sequence[Condition] = ("memory",),
    seed: int = 1,
) -> dict[str, dict[str, dict[str, float]]]:
    """Held-out values and phrasings, greedy and free-running.

    Returns:
        By number of facts and condition: ``asked``, and the shares ``named`` and ``exact``.
    """
    task = recall_task(passes.form.tokenizer, questions, facts, parts=("facts",), seed=seed)
    lines = [p.to_dict() for p in evaluate(passes, task, EvalOptions(conditions))]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in summarise(lines, task.metrics, task.slices):
        if row["slice"]:
            scores = {metric: row[metric]["mean"] for metric in ("named", "exact")}
            found.setdefault(str(row["slice"]["facts"]), {})[row["condition"]] = {"asked": row["n"], **scores}
    return found
