"""What is asked in the chat in which it was told, learnt by the second reader beside numbers.

A query made where all that was told stands in the window is another one than where a question comes alone: what was
told there is in it, and where something was never told it finds that instead. A reader that learnt questions by
themselves says the name of one's dog for that of one's neighbour, which the backbone does as well, as it likes to say
what it has just read. The first reader stays as it was, and other questions by themselves with it
(benchmarks/places.md).
"""

from __future__ import annotations

from deltamem.episodes.numbers import is_number
from deltamem.episodes.relation_data import is_of_relatives
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.readers import SECOND
from deltamem.training.places.asked_later import AskedLater, asked_about, asked_in_chat, learn_to_ask
from deltamem.training.places.bank import Bank, Report
from deltamem.training.places.later import alone, fit_route, put_back
from deltamem.training.warm_start import delta_layers

_NUMBERS, _IN_CHAT = (2.5, 0.4), (1.5, 0.4)
"""Weights of values told and never told: of numbers, where the question comes alone, and of all in a chat. What was
told there is copied from the window anyway, so that most of what is left to learn there is to say that something was
never told: weighing alike, the reader said so of most numbers asked for alone (benchmarks/places.md).
"""


def fit_chats(memory: DeltaMemory, bank: Bank, steps: int, seed: int = 0, report: Report | None = None) -> None:
    """Train the second reader's W_q and read gates, and then the route.

    Args:
        memory: whose adapter is changed; it has a second reader.
        bank: what its layers see.
        steps: of Adam; 480 for rank 64 in 26 layers take six minutes of a core.
        seed: of everything random.
        report: called with what is being done and the share done.

    Raises:
        DataError: the bank asks nothing in the chat in which it was told, or nothing else.
    """
    layers = delta_layers(memory)
    in_chat, numbers, close = asked_in_chat(bank), asked_about(bank, is_number), asked_about(bank, is_of_relatives)
    # What is told of people close to one is a third reader's (`people.py`).
    said = (in_chat | numbers) & ~close
    # Words in which other questions are put are many, and the first reader knows them; so replies begin as it says.
    begun = bank.opening_numbers & ~bank.opening_relatives
    if not in_chat.any() or said.all() or not begun.any() or begun.all():
        raise DataError("what is asked in the chat in which it was told is learnt beside other questions; give --bank")
    readers = alone(layers, SECOND)
    asking = AskedLater(memory, bank, said, ((_NUMBERS, numbers & ~in_chat), (_IN_CHAT, in_chat)), begun, seed)
    learn_to_ask(asking, readers, steps, "learning to read in a chat", report)
    put_back(layers, readers, SECOND)
    fit_route(layers, bank, said, begun, SECOND, seed, report)
