"""Ordinary talk that the backbone makes up itself: somebody's message, and the reply to it.

After the opening of a conversation a backbone goes on with what somebody might ask it, which is of more kinds than any
list of prompts: read gates that had seen replies to 390 prompts alone stood open in other text (benchmarks/places.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from deltamem.episodes.batches import left_padded
from deltamem.episodes.episode import Question
from deltamem.episodes.passes import Passes
from deltamem.paths import write_private
from deltamem.training.places.bank import Report

_BATCH = 32
_MESSAGE, _REPLY = 48, 72
"""Most tokens of each. A message that is longer is left out: it would be cut in the middle."""
_SHORTEST = 4
_DRAWN = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
_FUTILE = 10
"""Batches without a single message after which a backbone is taken to make none up."""
TALK_FILE = "made_up.json"


def kept_talk(passes: Passes, count: int, seed: int, directory: Path, report: Report | None = None) -> list[Question]:
    """What `make_up` makes, kept in a directory, so that a run that goes on need not make it again."""
    file, made_with = directory / TALK_FILE, {"count": count, "seed": seed}
    try:
        known = json.loads(file.read_text("utf-8"))
        if known["made with"] == made_with:
            return [Question(asked, said, kind="ordinary") for asked, said in known["talk"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    made = make_up(passes, count, seed, report)
    talk = [(question.text, question.answer) for question in made]
    write_private(file, json.dumps({"made with": made_with, "talk": talk}, ensure_ascii=False).encode())
    return made


@torch.no_grad()
def make_up(passes: Passes, count: int, seed: int = 0, report: Report | None = None) -> list[Question]:
    """Let the frozen backbone talk to itself.

    Args:
        passes: runs it.
        count: how many messages with their replies; 300 take some eight minutes of two cores with smollm2-135m.
        seed: of the draws.
        report: called with what is being done and the share done.

    Returns:
        So many, or fewer where the backbone hardly ever ends a message.
    """
    form, futile = passes.form, 0
    made: list[Question] = []
    with by_itself(passes, seed):
        while len(made) < count and futile < _FUTILE:
            drawn = go_on(passes, [form.opening] * _BATCH, _MESSAGE)
            messages = [tokens for tokens, ended in drawn if ended and len(tokens) >= _SHORTEST]
            futile = 0 if messages else futile + 1
            replies = go_on(passes, [form.opening + m + form.answer for m in messages], _REPLY) if messages else []
            for message, (reply, _) in zip(messages, replies, strict=True):
                asked, said = (form.tokenizer.decode(t, skip_special_tokens=True).strip() for t in (message, reply))
                if asked and said:
                    made.append(Question(asked, said, kind="ordinary"))
            if report is not None:
                report("letting the backbone talk", min(1.0, len(made) / count))
    return made[:count]


@contextmanager
def by_itself(passes: Passes, seed: int) -> Iterator[None]:
    """The frozen backbone alone, whose draws are by a seed and move nobody else's."""
    devices = [passes.device] if passes.device.type == "cuda" else []
    with torch.random.fork_rng(devices), passes.memory.disabled():
        torch.manual_seed(seed)
        yield


def go_on(passes: Passes, starts: Sequence[Sequence[int]], most: int) -> list[tuple[list[int], bool]]:
    """What comes after each start, drawn, and whether it came to an end."""
    stops = sorted(passes.form.stops)
    ids, valid = left_padded(starts)
    found: Tensor = passes.model.generate(
        input_ids=ids.to(passes.device),
        attention_mask=valid.long().to(passes.device),
        max_new_tokens=most,
        eos_token_id=stops,
        pad_token_id=stops[0],
        **_DRAWN,
    )
    said = []
    for tokens in found[:, ids.shape[1] :].tolist():
        end = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
        said.append((tokens[:end], end < len(tokens)))
    return said
