"""What is trained on its own before the first step on places: keys and queries, then what is said of what they find."""

from __future__ import annotations

from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.keys import fit_keys
from deltamem.training.places.saying import Saying, fit_saying
from deltamem.training.places.vocabulary import tell_vocabulary
from deltamem.training.recipe import Recipe


def fit_alone(passes: Passes, people: SyntheticPeople, bank: Bank, recipe: Recipe, report: Report | None) -> None:
    """Train them for as many steps as the recipe has; with none of them nothing is changed."""
    memory, seed = passes.memory, recipe.seed
    if recipe.key_steps:
        fit_keys(memory, bank, recipe.key_steps, seed, report)
    if recipe.say_steps:
        told = tell_vocabulary(passes, people, recipe.vocabulary, seed, report) if recipe.vocabulary else None
        fit_saying(memory, Saying(memory, bank, told), recipe.say_steps, seed, report)
