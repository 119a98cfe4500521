"""What is trained on its own: before the first step on places keys, what is said of what they find, gates, and what is
erased; after the last one the joint gate, how memory is read, numbers, what is asked in a chat, what people close to
one do and are, in what words replies begin, and where memory is heard.
"""

from __future__ import annotations

from deltamem.episodes.passes import Passes
from deltamem.memory import DeltaMemory
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.begun import fit_beginnings
from deltamem.training.places.chats import fit_chats
from deltamem.training.places.choosing import fit_choices
from deltamem.training.places.erasing import fit_erasing
from deltamem.training.places.gates import fit_gates
from deltamem.training.places.hearing import fit_hearing
from deltamem.training.places.joint import fit_joint_gate
from deltamem.training.places.keys import fit_keys
from deltamem.training.places.numbers import fit_numbers
from deltamem.training.places.people import fit_people
from deltamem.training.places.reading import fit_reading
from deltamem.training.places.saying import Saying, fit_saying
from deltamem.training.recipe import Recipe


def fit_alone(passes: Passes, bank: Bank, recipe: Recipe, report: Report | None) -> None:
    """Train them for as many steps as the recipe has; with none of them nothing is changed."""
    memory = passes.memory
    if recipe.key_steps:
        fit_keys(memory, bank, recipe.key_steps, recipe.seed, report)
    if recipe.say_steps:
        fit_saying(memory, Saying(memory, bank), recipe.say_steps, recipe.seed, report)
    if recipe.gate_steps:
        fit_gates(memory, bank, passes.form.text(" and"), recipe.gate_steps, recipe.seed, report)
    if recipe.fit_erase:
        fit_erasing(memory, bank)


def fit_at_the_end(memory: DeltaMemory, bank: Bank, recipe: Recipe, report: Report | None) -> None:
    """The same for what comes after all steps."""
    if recipe.joint_steps and memory.config.joint_gate:
        fit_joint_gate(memory, bank, recipe.joint_steps, recipe.seed, report)
    if recipe.read_steps:
        fit_reading(memory, bank, recipe.read_steps, recipe.seed, report, recipe.close_weight)
    if recipe.number_steps:
        fit_numbers(memory, bank, recipe.number_steps, recipe.seed, report)
    if recipe.chat_steps:
        fit_chats(memory, bank, recipe.chat_steps, recipe.seed, report)
    if recipe.people_steps:
        fit_people(memory, bank, recipe.people_steps, recipe.seed, report)
    if recipe.begin_steps:
        fit_beginnings(memory, bank, recipe.begin_steps, recipe.seed, report)
        if memory.config.choices:
            fit_choices(memory, bank, recipe.begin_steps, recipe.seed, report)
        if bank.idle.shape[1]:
            fit_hearing(memory, bank, recipe.seed, report)
