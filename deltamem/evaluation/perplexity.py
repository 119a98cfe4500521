"""Does memory leave ordinary text alone? Perplexity with no memory, an empty, a full and an unrelated state."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from deltamem.episodes.batches import text_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Turn
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.evaluation.histories import write_histories
from deltamem.evaluation.run import Report
from deltamem.evaluation.summary import interval
from deltamem.state import MemoryState


def perplexity(
    passes: Passes,
    path: Path,
    window: int = 256,
    windows: int = 64,
    batch: int = 8,
    seed: int = 0,
    report: Report = lambda *_: None,
) -> list[dict[str, Any]]:
    """Perplexity of a text file in windows.

    The states are: `empty`; `full`, which holds the text before the window (its first window is not measured);
    `unrelated`, which holds what a made-up person told over eight facts and eight turns of small talk.

    Returns:
        Per condition: ``condition``, ``tokens``, ``perplexity``, and ``over_frozen`` (mean, low, high), the ratio to
        the frozen backbone's.

    Raises:
        DataError: the file can't be read or is too short.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {path}: {error}") from None
    ids = passes.form.text(text)
    cut = [ids[at : at + window] for at in range(0, len(ids) - window + 1, window)][: windows + 1]
    if len(cut) < 2:
        raise DataError(f"{path} is too short: {len(ids)} tokens, at least {2 * window} are needed")
    measured = cut[1:]
    states = _states(passes, cut, seed, batch, report)
    losses: dict[str, list[float]] = {}
    for done, (name, state) in enumerate(states.items()):
        report(f"reading: {name}", done, len(states))
        losses[name] = []
        for start in range(0, len(measured), batch):
            rows = range(start, min(start + batch, len(measured)))
            chosen = None if state is None else state.select(list(rows))
            losses[name] += _losses(passes, [measured[i] for i in rows], chosen)
    report("reading", len(states), len(states))
    return [_row(name, values, losses["frozen"], (window - 1) * len(measured)) for name, values in losses.items()]


def _row(name: str, values: Sequence[float], frozen: Sequence[float], tokens: int) -> dict[str, Any]:
    gap, low, high = interval([ours - theirs for ours, theirs in zip(values, frozen, strict=True)])
    return {
        "condition": name,
        "tokens": tokens,
        "perplexity": math.exp(sum(values) / len(values)),
        "over_frozen": {"mean": math.exp(gap), "low": math.exp(low), "high": math.exp(high)},
    }


def _states(
    passes: Passes, cut: list[list[int]], seed: int, batch: int, report: Report
) -> dict[str, MemoryState | None]:
    count = len(cut) - 1
    people = SyntheticPeople(passes.form.tokenizer)
    rng = random.Random(f"perplexity-{seed}")
    told = {
        str(i): people.episode(rng, Difficulty(small_talk=8), "heldout", facts=8).history for i in range(min(count, 16))
    }
    limit = 1024
    others = write_histories(passes, told, limit, batch, lambda n, of: report("writing other histories", n, of))
    # One history after another: what stands before a window is the sum of all before it.
    full: list[MemoryState] = []
    passes.memory.reset(1)
    state = passes.memory.state.clone()
    for i, tokens in enumerate(cut[:-1]):
        report("writing the text", i, count)
        with torch.no_grad():
            said = Episode((Turn(passes.form.tokenizer.decode(tokens), ""),), ())
            state = passes.write(write_batch(passes.form, [said]), start=state).clone()
        full.append(state)
    passes.memory.reset(count)
    empty = passes.memory.state.clone()
    unrelated = MemoryState.stack([others[str(i % len(told))] for i in range(count)])
    return {"frozen": None, "empty": empty, "full": MemoryState.stack(full), "unrelated": unrelated}


def _losses(passes: Passes, rows: Sequence[list[int]], state: MemoryState | None) -> list[float]:
    batch = text_batch(rows)
    with torch.no_grad():
        logits = passes.read(batch, state)
        wanted = batch.expected()[0].to(logits.device)
        losses = F.cross_entropy(logits.float(), wanted, reduction="none").view(len(rows), -1).mean(-1)
    return [float(x) for x in losses]
