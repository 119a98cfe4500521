"""Numbers that people tell of themselves, and where they stand."""

from __future__ import annotations

import random
from typing import Any

from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.numbers import numbers
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Split


def test_numbers_are_told_in_digits_and_a_tenth_of_them_is_held_out(people: SyntheticPeople) -> None:
    kinds = {relation.id: relation.kind for relation in people.numbers}
    assert len(kinds) == len(people.numbers) >= 100
    for relation in people.numbers:
        assert relation.statements[-1] not in relation.statements[:-1], relation.id
        assert relation.questions[-1] not in relation.questions[:-1], relation.id
        assert all(text.count("{v}") == 1 for text in (*relation.statements, relation.answer))
    others = {r.id for r in (*people.relations, *people.singles, *people.families, *people.heldout_relations)}
    assert not others & kinds.keys()
    for kind in set(kinds.values()):
        told, held = numbers()[kind]["train"], numbers()[kind]["heldout"]
        assert not set(told) & set(held) and 0.02 < len(held) / len(told + held) < 0.2
    splits: tuple[Split, Split] = ("train", "heldout")
    for split in splits:
        rng, difficulty = random.Random(2), Difficulty(numbers=True, corrections=0.3, long_values=0.5)
        made = [people.episode(rng, difficulty, split, facts=4) for _ in range(20)]
        asked = [q for e in made for q in e.questions if q.value]
        told = [q for q in asked if q.topic in kinds]
        assert 20 < len(told) < 60
        assert all(q.value in numbers()[kinds[q.topic]][split] for q in told)
        assert all(len({q.value for q in e.questions}) == 4 for e in made)


def test_a_number_within_another_is_not_told_there(tokenizer: Any) -> None:
    values = ("9", "15", "9:15", "1987", "87")
    asked = tuple(Question(f"{v}?", f"It is {v}.", v) for v in values)
    said = "I am 9, not 91 or 1987. Bus 15 leaves at 9:15, or 19:15. 87"
    batch = write_batch(ChatFormat.of(tokenizer), [Episode((Turn(said, "Ok."),), asked)])
    for number, value in enumerate(values, 1):
        assert tokenizer.decode(batch.ids[batch.values == number].tolist()).split() == [value], value
