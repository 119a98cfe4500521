"""What people close to one do and are, learnt by a third reader: where a sister lives, what a boss drives.

A reader that learnt what one does oneself takes a sister's town for one's own ("You live in Oslo."). Learnt by the
second reader it cost numbers, which that one reads (benchmarks/places.md), so there is one for it. First keys, and its
queries, learn whose a thing is (`whose.py`); then it learns how replies about people begin, and what was told of them.
"""

from __future__ import annotations

from deltamem.episodes.relation_data import is_of_relatives
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.readers import THIRD
from deltamem.training.places.asked_later import AskedLater, asked_about, asked_in_chat, learn_to_ask
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.later import alone, fit_gate, fit_route, put_back
from deltamem.training.places.whose import Whose
from deltamem.training.warm_start import delta_layers

_WHOSE = 1.5
"""Steps of keys and queries alone, for each of the others."""
_ALONE, _IN_CHAT = (2.5, 0.7), (2.0, 0.6)
"""Weights of values told and never told, where the question comes alone and in the chat in which it was told."""
_LEAN = -4.25
"""Of its route, to the readers before it: what is said of a sister's name and of where she lives looks much alike, and
words and numbers in which seven in a hundred places went to the third were found less often."""


def fit_people(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train W_k, the third reader's W_q and read gates, and then its joint gate and its route.

    Args:
        memory: whose adapter is changed; it has a third reader.
        bank: what its layers see; thousands of things that are told of people close to one.
        steps: of Adam; 500 for rank 64 in 26 layers take eight minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank tells nothing of people close to one, or nothing else.
    """
    layers = delta_layers(memory)
    close, in_chat = asked_about(bank, is_of_relatives), asked_in_chat(bank)
    begun = bank.opening_relatives
    if not close.any() or close.all() or not begun.any() or begun.all():
        raise DataError("what is told of people close to one is learnt beside other things; give --relatives")
    readers = alone(layers, THIRD)
    Whose(memory, bank, readers, seed).learn(round(_WHOSE * steps), report)
    put_back(layers, readers, THIRD)
    values = ((_ALONE, close & ~in_chat), (_IN_CHAT, close & in_chat))
    asking = AskedLater(memory, bank, close, values, begun, seed)
    learn_to_ask(asking, readers, steps, "learning to read of people", report)
    put_back(layers, readers, THIRD)
    fit_gate(layers, bank, close, begun, THIRD, seed, report)
    fit_route(layers, bank, close, begun, THIRD, seed, report, _LEAN)
