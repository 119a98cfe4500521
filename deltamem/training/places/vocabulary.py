"""Every word piece of a tokenizer as it looks where a value is told.

A value is told in a token's hidden states, and what is to be said of them is that token. So which statement it stands
in, and who asks, matter little: many tokens are put at the place of one statement's value, side by side, each
seeing the statement before it and itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltamem.episodes.batches import write_batch
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Pieces, told_pieces
from deltamem.training.places.bank import Report, Words
from deltamem.training.places.builder import alone
from deltamem.training.recorder import Recorder

_FACTS = 2
"""Told in a history whose statements are taken; short ones, as all of it is run again for every lot."""
_TOGETHER = 320
"""Tokens side by side."""
_AMID = 0.2
"""Share of the pieces that begin a word that also go on one, as in values of several words."""


@torch.no_grad()
def tell_vocabulary(
    passes: Passes, people: SyntheticPeople, times: int, seed: int = 0, report: Report | None = None
) -> Words:
    """Put every token but those held out at the place of a value.

    Args:
        passes: runs the frozen backbone.
        people: makes the statements.
        times: how often each is told; 49,000 tokens of smollm2-135m take four minutes of a core, and 1.5 GB.
        seed: of everything random.
        report: called with what is being done and the share done.
    """
    rng = random.Random(f"vocabulary-{seed}")
    pieces = told_pieces(passes.form.tokenizer)
    lots = [lot for _ in range(times) for lot in _lots(rng, pieces)]
    hidden: list[Tensor] = []
    for n, (later, ids) in enumerate(lots):
        hidden.append(_told_in(passes, _statement(rng, passes, people, later), ids))
        if report is not None:
            report("telling every word there is", n / len(lots))
    each = torch.tensor([(piece, later) for later, ids in lots for piece in ids])
    return Words(torch.cat(hidden, dim=1), each[:, 0], each[:, 1] > 0)


def _lots(rng: random.Random, pieces: Pieces) -> list[tuple[bool, list[int]]]:
    """What is told in one statement each, and whether it is to go on a value there."""
    later = [*pieces.later, *rng.sample(pieces.first, int(_AMID * len(pieces.first)))]
    found = []
    for goes_on, ids in ((False, pieces.first), (True, later)):
        order = rng.sample(ids, len(ids))
        found += [(goes_on, order[at : at + _TOGETHER]) for at in range(0, len(order), _TOGETHER)]
    return found


def _statement(rng: random.Random, passes: Passes, people: SyntheticPeople, later: bool) -> list[int]:
    """Token ids of a conversation up to where a value begins, or goes on."""
    while True:
        batch = write_batch(passes.form, [people.episode(rng, alone(rng), "train", facts=_FACTS)])
        value = batch.values[0].tolist()
        places = [t for t in range(1, len(value)) if value[t] and (value[t] == value[t - 1]) == later]
        if places:
            return passes.form.opening + batch.ids[0, : rng.choice(places)].tolist()


def _told_in(passes: Passes, before: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Hidden states (layers, n, hidden size) of tokens that all come right after the same."""
    length, count = len(before), len(ids)
    sees = torch.zeros(length + count, length + count, dtype=torch.bool)
    sees[:, :length] = True
    sees[:length, :length].tril_()
    sees[length:, length:] = torch.eye(count, dtype=torch.bool)
    model: Any = passes.model.base_model
    kind = next(model.parameters()).dtype
    mask = torch.zeros(1, 1, *sees.shape, dtype=kind).masked_fill(~sees, torch.finfo(kind).min)
    positions = torch.tensor([[*range(length), *[length] * count]])
    here = torch.zeros(1, length + count, dtype=torch.bool)
    here[:, length:] = True
    with passes.memory.disabled(), Recorder(passes.memory, here, torch.bfloat16) as seen:
        model(
            input_ids=torch.tensor([[*before, *ids]], device=passes.device),
            attention_mask=mask.to(passes.device),
            position_ids=positions.to(passes.device),
            use_cache=False,
        )
    return seen.stacked().cpu()
