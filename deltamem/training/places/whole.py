"""A whole bank: what is told and asked, ordinary talk of every sort, and the words that are told in place of values."""

from __future__ import annotations

import random
from pathlib import Path

from deltamem.episodes.episode import Question, Turn
from deltamem.episodes.impersonal import about_numbers, impersonal
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.made_up import kept_talk
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.own_text import write_text
from deltamem.training.places.bank import Bank, Report, with_words
from deltamem.training.places.builder import USUAL, Shares, build_bank
from deltamem.training.places.vocabulary import tell_vocabulary
from deltamem.training.recipe import Recipe

_NUMBERS_ALONE = Shares(numbers=0.8)
"""Where those alone are learnt."""
_IN_CHATS = Shares(numbers=0.5, chats=0.5)
"""Where what is asked in a chat is learnt."""
_OF_PEOPLE = Shares(numbers=0.35, relatives=0.65, chats=0.3)
"""Where what is told of people close to one is learnt."""
_WHERE_ALL_BEGIN = Shares(numbers=0.35, relatives=0.35, chats=0.4)
"""Where in what words replies begin is learnt."""
_BEGUN = 0.35
"""Where any of that is all that is learnt: share of how replies about other words begin."""
_ABOUT_NUMBERS, _TEXTS = 3, 96
"""Questions about every noun and sum with numbers, and texts, that are left alone where numbers are learnt."""


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
    numeric: list[Question] = []
    texts: list[list[int]] = []
    if recipe.readers > 1 and ordinary is not None:
        numeric = ordinary.others(about_numbers(random.Random(f"numbers-{recipe.seed}"), "train", _ABOUT_NUMBERS))
        # What has numbers in it is told as well, and is nothing to remember.
        people.small_talk = people.small_talk + [Turn(q.text, q.answer) for q in numeric]
        texts = write_text(passes, _TEXTS, recipe.seed, report)
    shares = _shares(recipe)
    begun = 1.0
    if recipe.only_erasing:
        begun = 0.0  # what is erased hangs on no reply
    elif recipe.only_numbers:
        begun = _BEGUN
    bank = build_bank(
        passes,
        people,
        asked,
        recipe.bank,
        recipe.seed,
        report,
        stock=recipe.stock,
        workers=workers,
        begun=begun,
        shares=shares,
        unseen=numeric,
        texts=texts,
    )
    if not recipe.vocabulary or recipe.only_erasing or recipe.only_numbers:
        return bank  # words in place of a number are none
    return with_words(bank, tell_vocabulary(passes, people, recipe.vocabulary, recipe.seed, report))


def _shares(recipe: Recipe) -> Shares:
    if recipe.people_steps:
        return _OF_PEOPLE._replace(relatives=recipe.relatives or _OF_PEOPLE.relatives)
    if recipe.begin_steps:
        return _WHERE_ALL_BEGIN._replace(relatives=recipe.relatives or _WHERE_ALL_BEGIN.relatives)
    shares = _IN_CHATS if recipe.chat_steps else _NUMBERS_ALONE if recipe.only_numbers else USUAL
    return shares._replace(relatives=recipe.relatives)


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
