"""What stands before a question in its window."""

from __future__ import annotations

import random

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.synthetic import SyntheticPeople


def test_a_question_may_stand_in_the_chat_in_which_all_of_it_was_told(people: SyntheticPeople) -> None:
    hard = Difficulty(facts=3, one_chat=1.0, unknown=1.0, noted=1.0, corrections=0.3, earlier=0.5)
    rng = random.Random(0)
    said_back = told = 0
    for episode in (people.episode(rng, hard, "train") for _ in range(40)):
        history = [turn.user for turn in episode.history]
        for window in episode.questions:
            chat = [turn.text for turn in window.earlier if turn.text in history and turn.kind == "ordinary"]
            first = next((q for q in (*window.earlier, window) if q.kind != "ordinary"), window)
            assert chat == (history[: history.index(first.text)] if first.text in history else history)[-8:]
        values = [q.value for q in episode.asked if q.kind in ("recall", "corrected")]
        for turn in episode.questions[0].earlier:
            if turn.text in history and any(value and value in turn.text for value in values):
                told, said_back = told + 1, said_back + any(value and value in turn.answer for value in values)
    assert 0.7 < said_back / told < 0.95
    alone = people.episode(random.Random(3), Difficulty(facts=3), "train")
    assert not any(q.earlier for q in alone.questions)
