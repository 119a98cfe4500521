"""The words that are told: those of a tokenizer, and those put together from its pieces."""

from __future__ import annotations

import random

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import beginnings, split_words
from deltamem.evaluation.tasks.recall import recall_task
from tests.conftest import Words

_LATER = ["y", "one", "ten", "bert", "son", "42", "Up"]


class Pieces(Words):
    """Some words, and pieces that go on one."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary += [*_LATER, " Mist"]


def test_a_word_put_together_begins_as_one_and_goes_on_in_letters() -> None:
    pieces, rng = beginnings(Pieces(), "name"), random.Random(0)
    heldout = set(split_words(Pieces(), "name")["heldout"])
    assert heldout and not heldout & set(pieces.first)
    assert set(pieces.later) == {"y", "one", "ten", "bert", "son"}
    words = {pieces.word(rng) for _ in range(2000)}
    assert "Misty" in words
    assert not words & heldout
    for word in words:
        first = max((f for f in pieces.first if word.startswith(f)), key=len)
        assert word != first and word[len(first) :].islower()


def test_a_held_out_word_does_not_come_of_pieces() -> None:
    class Split(Pieces):
        """Every name can be put together from two pieces as well."""

        def __init__(self) -> None:
            super().__init__()
            self.vocabulary += [" Ab", " Cd", " Ef", " Gh", " Ij", "two", "six"]

    pieces, rng = beginnings(Split(), "name"), random.Random(0)
    heldout = set(split_words(Split(), "name")["heldout"])
    assert any(first + later in heldout for first in pieces.first for later in pieces.later)
    assert not heldout & {pieces.word(rng) for _ in range(2000)}


def told(people: SyntheticPeople, split: str) -> set[str]:
    rng, hard = random.Random(0), Difficulty(long_values=1.0)
    return {q.value for _ in range(150) for q in people.episode(rng, hard, split, facts=4).questions}  # type: ignore[arg-type]


def test_only_training_tells_words_put_together() -> None:
    people = SyntheticPeople(Pieces())
    training, heldout = told(people, "train"), told(people, "heldout")
    assert "Misty" in training
    assert any(" " in word for word in training)
    goes_on = {f"{f}{n}" for f in people.values.single("name", "train") for n in ("y", "bert", "son")}
    assert goes_on & training and not goes_on & heldout


def test_longer_words_are_asked_for_where_they_fit_and_never_told_in_training() -> None:
    people, task = SyntheticPeople(Pieces()), recall_task(Pieces(), questions=40, parts=["longer words"])
    known = {word for words in people.values.longer.values() for word in words}
    assert {item.value for item in task.items} <= known
    assert {tuple(item.labels.items()) for item in task.items} == {(("kind", "longer words"),)}
    hard = Difficulty(long_values=1.0, natural=0.5)
    rng = random.Random(0)
    trained = {q.value for _ in range(200) for q in people.episode(rng, hard, "train", facts=4).questions}
    assert not trained & known


def test_a_word_that_is_one_token_is_no_longer_word() -> None:
    class Known(Pieces):
        def __init__(self) -> None:
            super().__init__()
            self.vocabulary += [" Albuquerque"]

    assert "Albuquerque" in SyntheticPeople(Pieces()).values.longer["home"]
    assert "Albuquerque" not in SyntheticPeople(Known()).values.longer["home"]
