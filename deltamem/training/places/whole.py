"""A whole bank: what is told and asked, ordinary talk of every sort, and the words that are told in place of values."""

from __future__ import annotations

import random
from pathlib import Path

from deltamem.episodes.episode import Question
from deltamem.episodes.impersonal import impersonal
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.made_up import kept_talk
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.places.bank import Bank, Report, with_words
from deltamem.training.places.builder import build_bank
from deltamem.training.places.vocabulary import tell_vocabulary
from deltamem.training.recipe import Recipe


def whole_bank(
    passes: Passes,
    people: SyntheticPeople,
    ordinary: OrdinaryTalk | None,
    recipe: Recipe,
    directory: Path,
    report: Report | None = None,
    workers: int = 0,
) -> Bank:
    """What a run's steps on places draw from.

    Args:
        passes: runs the frozen backbone.
        people: makes what is told.
        ordinary: ordinary prompts; None leaves ordinary talk out.
        recipe: says how much of everything.
        directory: of the run, where what the backbone says is kept.
        report: called with what is being done and the share done.
        workers: processes that make the episodes; 0 for this one alone.
    """
    asked = _asked(passes, ordinary, recipe, directory, report) if ordinary is not None else []
    # What is erased hangs on no reply.
    begun = not recipe.only_erasing
    bank = build_bank(
        passes, people, asked, recipe.bank, recipe.seed, report, stock=recipe.stock, workers=workers, begun=begun
    )
    if not recipe.vocabulary or recipe.only_erasing:
        return bank
    return with_words(bank, tell_vocabulary(passes, people, recipe.vocabulary, recipe.seed, report))


def _asked(
    passes: Passes, ordinary: OrdinaryTalk, recipe: Recipe, directory: Path, report: Report | None
) -> list[Question]:
    asked = list(ordinary.questions)
    if recipe.impersonal:
        rng = random.Random(f"impersonal-{recipe.seed}")
        asked += ordinary.others([q.text for q in impersonal(rng, "train", recipe.impersonal)])
    if recipe.made_up:
        asked += kept_talk(passes, recipe.made_up, recipe.seed, directory, report)
    return asked
